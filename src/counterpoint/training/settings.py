"""From a configuration to TRL's: what is passed on unchanged and what counterpoint sets itself."""

import dataclasses
from typing import Any

import torch
from trl import GRPOConfig

from counterpoint.config import Config
from counterpoint.config.training_keys import unknown_setting
from counterpoint.errors import ConfigError
from counterpoint.masking import masked_data
from counterpoint.runs import RunDirectory


class RunSettings(GRPOConfig):
    """TRL's settings, which go to trackers and into ``training_args.bin`` without what came from the environment."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as trackers get them."""
        shown: dict[str, Any] = masked_data(super().to_dict())
        return shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (GRPOConfig,), masked_data(self.__dict__)


def grpo_config(config: Config, output_dir: str, max_steps: int | None = None) -> GRPOConfig:
    """The ``trl.GRPOConfig`` of a run; ``max_steps`` replaces the configured number for one stage of several.

    Raises:
        ConfigError: a key under ``training`` that TRL does not know, or a value that it refuses.
    """
    known = setting_names()
    if unknown := [key for key in config.training if key not in known]:
        raise ConfigError("\n".join(f"training.{key}: {unknown_setting(key, known)}" for key in unknown))
    settings = _own_settings(config, output_dir) | config.training
    if max_steps is not None:
        settings["max_steps"] = max_steps
    try:
        return RunSettings(**settings)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"training: trl.GRPOConfig refuses these settings: {error}") from error


def setting_names() -> set[str]:
    """Names of all settings of the installed ``trl.GRPOConfig``."""
    return {field.name for field in dataclasses.fields(GRPOConfig) if field.init}


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
