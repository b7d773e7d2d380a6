"""Where and why one domain hurts another, measured on checkpoints: whoever trained them.

    edits        what training changed: sparsity, norms, neurons, overlap between checkpoints
    routes       which neurons and heads a domain uses, and which of them two domains share
    conflicts    policy gradients per domain, their cosines, and what noise alone would give
    damage       what a later edit costs an earlier domain: first order, second order, measured
    behaviour    entropy, length and diversity per domain over a run
    diagnose     everything that a run's checkpoints allow

Every number stands beside the level that chance or noise would give. Results are frozen dataclasses; ``write_result``
makes JSON of them.
"""

import importlib
from typing import Any

_HOMES: dict[str, str] = {
    "Behaviour": "behaviour_analysis.analysis",
    "Checkpoint": "checkpoints",
    "Comparison": "checkpoints",
    "Conflicts": "conflict_analysis.results",
    "ConflictsOverTime": "conflict_analysis.over_time",
    "Damage": "damage_analysis.results",
    "DamageOptions": "damage_analysis.results",
    "DiagnoseOptions": "whole_run.analysis",
    "Edits": "edit_analysis.results",
    "Estimate": "stats",
    "Rollout": "rollouts",
    "Rollouts": "rollouts",
    "Routes": "route_analysis.analysis",
    "Thresholds": "edit_analysis.chunks",
    "Summary": "whole_run.results",
    "behaviour": "behaviour_analysis.analysis",
    "compare": "checkpoints",
    "conflicts": "conflict_analysis.analysis",
    "conflicts_over_time": "conflict_analysis.over_time",
    "damage": "damage_analysis.analysis",
    "diagnose": "whole_run.analysis",
    "edits": "edit_analysis.analysis",
    "open_checkpoint": "checkpoints",
    "read_optimizer": "conflict_analysis.metric",
    "read_rollouts": "rollouts",
    "routes": "route_analysis.analysis",
    "sample_rollouts": "rollouts",
    "save_rollouts": "rollouts",
    "to_json": "results",
    "write_result": "results",
}
"""Public names and the file that each lives in, here or in ``counterpoint.checkpoints``; imported when first used."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = _HOMES[name]
        package = "counterpoint" if home in ("checkpoints", "stats") else "counterpoint.diagnosis"
        return getattr(importlib.import_module(f"{package}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
