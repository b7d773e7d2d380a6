"""What each domain weighed in a run, on average over its steps."""

from collections.abc import Iterable, Mapping, Sequence
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
    means = means_of(WEIGHTS, metrics)
    return {what: means[kind] for kind, what in WEIGHTS.items() if means[kind]}


def means_of(kinds: Iterable[str], metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each kind the mean of ``KIND/DOMAIN`` of each domain over the steps that logged it."""
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for line in metrics:
        for key, value in line.items():
            kind, slash, domain = key.partition("/")
            if slash and kind in found and isinstance(value, int | float):
                found[kind].setdefault(domain, []).append(float(value))
    return {
        kind: {domain: sum(values) / len(values) for domain, values in of_domain.items()}
        for kind, of_domain in found.items()
    }
