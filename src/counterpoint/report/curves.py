"""Training metrics as curves: one value per step, and the same averaged over its neighbours."""

from collections.abc import Callable
from typing import Any

import numpy as np

from counterpoint.report.read import Detail, RunData
from counterpoint.report.text import clean, number

DOMAIN_CURVES = {
    "reward": ("Reward", "mean total reward of the step's completions"),
    "entropy": ("Entropy", "nats per generated token; near zero the model no longer explores"),
    "completion_length": ("Completion length", "tokens"),
    "truncated": ("Truncated", "share of completions cut off at the length limit"),
    "zero_advantage": ("No signal", "share of prompts whose completions all scored the same and so teach nothing"),
    "effective_weight": ("Effective weight", "factor in front of the domain's mean loss, as a fraction of all"),
    "kl": ("KL", "nats per token, away from the reference model"),
}
"""Metric -> its title and its unit in words; one curve per domain, key ``metric/domain``."""

Curve = dict[str, Any]


def domain_curves(run: RunData, domains: list[str], detail: Detail) -> list[dict[str, Any]]:
    """Every metric of ``DOMAIN_CURVES`` that the run logged, with one curve per domain."""
    panels = []
    for metric, (title, unit) in DOMAIN_CURVES.items():
        curves = [_curve(run, f"{metric}/{name}", clean(name, 60), detail) for name in domains]
        seen = any(any(curve["value"]) for curve in curves)
        # KL is zero throughout unless the run has a reference model; the others are news even when zero.
        if (seen or metric != "kl") and any(curve["step"] for curve in curves):
            panels.append({"metric": metric, "title": title, "unit": unit, "curves": curves})
    return panels


def surgery_curves(run: RunData, domains: list[str], detail: Detail) -> dict[str, Any]:
    """The global cosine of every domain pair, the conflict rate, and the share of the update removed."""
    return {
        "cosine": _cosines(run, domains, detail),
        "conflict_rate": _curve(run, "conflict_rate", "all pairs", detail),
        "removed": _curve(run, "removed", "removed", detail),
    }


def smooth(values: np.ndarray, window: float) -> np.ndarray:
    """The mean of each value's neighbours, weighted by a Gaussian of ``window`` steps' width [S]: no delay."""
    positions = np.arange(len(values))
    weights_SS = np.exp(-0.5 * ((positions[:, None] - positions[None, :]) / window) ** 2)
    result: np.ndarray = weights_SS @ values / weights_SS.sum(axis=1)
    return result


def bin_means(values: np.ndarray, num_bins: int, mean: Callable[..., Any] = np.mean) -> np.ndarray:
    """``values`` [S, ...] averaged in at most ``num_bins`` bins of neighbours along the first axis."""
    return np.stack([mean(part, axis=0) for part in np.array_split(values, min(num_bins, len(values)))])


def _cosines(run: RunData, domains: list[str], detail: Detail) -> list[Curve]:
    pairs = [(a, b) for i, a in enumerate(sorted(domains)) for b in sorted(domains)[i + 1 :]]
    curves = [_curve(run, f"cosine/{a}|{b}", pair_name(a, b), detail) for a, b in pairs]
    return [curve for curve in curves if curve["step"]]


def pair_name(first: str, second: str) -> str:
    """How the page writes a pair of domains."""
    return f"{clean(first, 30)} · {clean(second, 30)}"


def _curve(run: RunData, key: str, name: str, detail: Detail) -> Curve:
    # A later line of the same step replaces the earlier one: it is what a resumed run did.
    points = {
        int(step): value
        for row in run.metrics
        if (step := number(row.get("step"))) is not None and (value := number(row.get(key))) is not None
    }
    if not points:
        return {"name": name, "step": [], "value": [], "smooth": []}
    steps = np.array(sorted(points), dtype=np.float64)
    values = np.array([points[int(step)] for step in steps])
    steps, values = bin_means(steps, detail.curve_points), bin_means(values, detail.curve_points)
    return {
        "name": name,
        "step": [round(step, 1) for step in steps.tolist()],
        "value": [float(f"{value:.4g}") for value in values.tolist()],
        "smooth": [float(f"{value:.4g}") for value in smooth(values, max(1.5, len(values) / 20)).tolist()],
    }
