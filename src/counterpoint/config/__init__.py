"""Reading and checking a configuration; never imports torch."""

from counterpoint.config.domain import DomainConfig, RewardConfig
from counterpoint.config.load import load_config, parse_config
from counterpoint.config.schema import (
    Config,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    RecoveryConfig,
    RunConfig,
    StrategyConfig,
    config_schema,
)
from counterpoint.config.sources import FileSource, HubSource, PocketSource, ReasoningGymSource

__all__ = [
    "Config",
    "DomainConfig",
    "EvaluationConfig",
    "FileSource",
    "HubSource",
    "LoraConfig",
    "ModelConfig",
    "PocketSource",
    "ReasoningGymSource",
    "RecoveryConfig",
    "RewardConfig",
    "RunConfig",
    "StrategyConfig",
    "config_schema",
    "load_config",
    "parse_config",
]
