"""Brings back what a later domain cost an earlier one.

    rollback     undoes part of an edit without training: which weights, and by how much, is chosen on one split and
                 reported on another, beside random choices of as many weights
    refresh      short reinforcement learning on the damaged domain
    recover      reads a run, says what fell, and tries both

Results are frozen dataclasses; ``write_result`` makes JSON of them.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {
    "Recover": "recovering.results",
    "RecoverOptions": "recovering.results",
    "Refresh": "refreshing.results",
    "RefreshOptions": "refreshing.results",
    "Rollback": "rolling_back.results",
    "RollbackOptions": "rolling_back.options",
    "continue_refresh": "refreshing.analysis",
    "plan_recovery": "recovering.analysis",
    "recover": "recovering.analysis",
    "refresh": "refreshing.analysis",
    "rollback": "rolling_back.analysis",
    "to_json": "results",
    "write_result": "results",
}
"""Public names and the file that each lives in; imported when first used."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"counterpoint.recovery.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
