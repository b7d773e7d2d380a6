"""From a configuration to TRL's: what is passed on unchanged and what counterpoint sets itself."""

from typing import Any

import torch

from counterpoint.config import Config
from counterpoint.errors import ConfigError
from counterpoint.runs import RunDirectory
from counterpoint.training.config import DomainGRPOConfig
from counterpoint.training.values import build_config, setting_findings, setting_names

__all__ = ["grpo_config", "output_dir", "setting_findings", "setting_names", "uses_cpu"]


def grpo_config(
    config: Config, output_dir: str, max_steps: int | None = None, *, rehearse: bool = False
) -> DomainGRPOConfig:
    """The ``DomainGRPOConfig`` of a run; ``max_steps`` replaces the configured number for one stage of several.

    With ``rehearse`` optimizer, schedule and the like are built once, to see that they can be.

    Raises:
        ConfigError: a key under ``training`` that TRL does not know, or a value that it refuses.
    """
    if problems := [f"training.{key}: {message}" for key, message in setting_findings(config.training)]:
        raise ConfigError("\n".join(problems))
    training = config.training if max_steps is None else config.training | {"max_steps": max_steps}
    return build_config(_own_settings(config, output_dir), training, rehearse=rehearse)


def _own_settings(config: Config, output_dir: str) -> dict[str, Any]:
    on_cpu = uses_cpu(config)
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "seed": config.run.seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": config.run.save_every,
        "save_total_limit": None,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": on_cpu,
        "trust_remote_code": config.model.trust_remote_code,
    }
    if on_cpu:
        settings |= {"bf16": False, "dataloader_pin_memory": False}
    return settings


def uses_cpu(config: Config) -> bool:
    """Whether training runs on the CPU: asked for, or nothing else is there."""
    return config.run.device == "cpu" or not torch.accelerator.is_available()


def output_dir(run: RunDirectory) -> str:
    """Where TRL keeps its own files of a run, unfinished checkpoints included."""
    return str(run.path / "trainer")
