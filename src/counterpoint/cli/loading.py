"""Reads configurations for commands: every problem at once, values under ``training`` included."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.config import Config


def load(path: Path, overrides: Sequence[str] | None = None) -> "Config":
    """The configuration in ``path``, what stands under ``training`` checked by the installed TRL."""
    from counterpoint.config import load_config

    return load_config(path, overrides or (), setting_findings)


def setting_findings(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and message of everything under ``training`` that ``trl.GRPOConfig`` cannot use."""
    from counterpoint.training.values import setting_findings

    return setting_findings(training)
