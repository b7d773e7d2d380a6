"""Generate, score, and say how sure the score is. ``intervals`` alone works without torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterpoint.evaluation.sampling import Completion, Sampling, generate
    from counterpoint.evaluation.scoring import DomainScore, EvaluationPlan, Sample, evaluate, score_rows

__all__ = ["Completion", "DomainScore", "EvaluationPlan", "Sample", "Sampling", "evaluate", "generate", "score_rows"]

_HOMES = {
    "counterpoint.evaluation.sampling": ("Completion", "Sampling", "generate"),
    "counterpoint.evaluation.scoring": ("DomainScore", "EvaluationPlan", "Sample", "evaluate", "score_rows"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
