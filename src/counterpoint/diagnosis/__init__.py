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
    "Behaviour": "behaviour_of_run",
    "Checkpoint": "checkpoints",
    "Comparison": "checkpoints",
    "Conflicts": "conflicts_results",
    "ConflictsOverTime": "conflicts_of_run",
    "Damage": "damage_results",
    "DamageOptions": "damage_results",
    "DiagnoseOptions": "everything",
    "Edits": "edits_results",
    "Estimate": "statistics",
    "Rollout": "rollouts",
    "Rollouts": "rollouts",
    "Routes": "routes_of_domains",
    "Thresholds": "edits_chunks",
    "Summary": "everything_results",
    "behaviour": "behaviour_of_run",
    "compare": "checkpoints",
    "conflicts": "conflicts_of_model",
    "conflicts_over_time": "conflicts_of_run",
    "damage": "damage_analysis",
    "diagnose": "everything",
    "edits": "edits_of_checkpoints",
    "open_checkpoint": "checkpoints",
    "read_optimizer": "gradient_metric",
    "read_rollouts": "rollouts",
    "routes": "routes_of_domains",
    "sample_rollouts": "rollouts",
    "save_rollouts": "rollouts",
    "to_json": "results",
    "write_result": "results",
}
"""Public names and the file of this package that each lives in; imported when first used."""

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"counterpoint.diagnosis.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
