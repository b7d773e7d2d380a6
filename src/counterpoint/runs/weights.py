"""What each domain weighed in a run, on average over its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

WEIGHTS: Mapping[str, str] = {
    "share_prompts": "prompts",
    "share_tokens": "tokens",
    "share_signal": "signal",
    "effective_weight": "loss",
    "share_gradient": "gradient",
    "share_update": "update",
}
"""Metric of a domain, ``share_tokens/math``, and what it is a share of; in the order in which one leads to the next."""


def mean_weights(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What is shared -> domain -> its mean share, over the steps that logged one. Empty for runs of one domain."""
    means = {what: mean_of(kind, metrics) for kind, what in WEIGHTS.items()}
    return {what: shares for what, shares in means.items() if shares}


def mean_of(kind: str, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of ``kind/DOMAIN`` of each domain over the steps that logged it."""
    found: dict[str, list[float]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith(f"{kind}/") and isinstance(value, int | float):
                found.setdefault(key.removeprefix(f"{kind}/"), []).append(float(value))
    return {domain: sum(values) / len(values) for domain, values in found.items()}
