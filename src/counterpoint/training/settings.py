"""From a configuration to TRL's: what is passed on unchanged and what counterpoint sets itself."""

import shutil
from typing import Any

import torch

from counterpoint.config import Config
from counterpoint.errors import ConfigError
from counterpoint.runs import RunDirectory
from counterpoint.training.config import DomainGRPOConfig
from counterpoint.training.stages import Stage
from counterpoint.training.values import build_config, setting_findings, setting_names

__all__ = [
    "CONTINUED",
    "TRACKERS",
    "clear_output",
    "grpo_config",
    "output_dir",
    "setting_findings",
    "setting_names",
    "uses_cpu",
]

TRACKERS = "trackers"
"""Folder of a run with one folder of TRL's own for each stage."""

CONTINUED = "continued"
"""Beside unfinished checkpoints: the links from which an interrupted stage goes on."""


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


def output_dir(run: RunDirectory, stage: Stage) -> str:
    """TRL's own folder of a stage: what trackers write stays there, checkpoints leave it when they are whole."""
    return str(run.path / TRACKERS / f"stage-{stage.index + 1}")


def clear_output(run: RunDirectory) -> None:
    """Removes unfinished checkpoints and TRL's model cards; what trackers wrote stays."""
    for folder in (run.path / TRACKERS).glob("stage-*"):
        for unfinished in (*folder.glob("checkpoint-*"), folder / CONTINUED):
            shutil.rmtree(unfinished, ignore_errors=True)
        (folder / "README.md").unlink(missing_ok=True)
    for folder in (*(run.path / TRACKERS).glob("stage-*"), run.path / TRACKERS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
