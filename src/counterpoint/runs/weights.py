"""What each domain weighed in a run, on average over its steps."""

from collections.abc import Iterable, Mapping
from typing import Any

WEIGHTS: Mapping[str, str] = {
    "share_prompts": "prompts",
    "share_tokens": "tokens",
    "share_signal": "prompts that teach",
    "effective_weight": "effective weight",
    "share_gradient": "squared gradient",
    "share_update": "update",
}
"""Metric of a domain, ``share_tokens/math``, and what it is a share of; in the order in which one leads to the next."""


def mean_weights(metrics: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What is shared -> domain -> its mean share, over the steps that logged one. Empty for runs of one domain."""
    found: dict[str, dict[str, list[float]]] = {what: {} for what in WEIGHTS.values()}
    for line in metrics:
        for key, value in line.items():
            kind, _, domain = key.partition("/")
            if kind in WEIGHTS and isinstance(value, int | float):
                found[WEIGHTS[kind]].setdefault(domain, []).append(float(value))
    return {
        what: {domain: sum(values) / len(values) for domain, values in shares.items()}
        for what, shares in found.items()
        if shares
    }
