"""Reads configurations for commands: every problem at once, keys of ``training`` included."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterpoint.config import Config


def load(path: Path, overrides: Sequence[str] | None = None) -> "Config":
    """The configuration in ``path``, the keys under ``training`` compared with the installed TRL's."""
    from counterpoint.config import load_config

    return load_config(path, overrides or (), setting_names)


def setting_names() -> Collection[str]:
    """Every setting of ``trl.GRPOConfig``."""
    from counterpoint.training.settings import setting_names

    return setting_names()
