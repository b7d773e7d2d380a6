"""Cosines between domain gradients, module by module, from the run's Grams.

Legend: S recorded steps, B bins of steps, G modules, D domains, Q pairs of domains.
"""

import math
import re
from typing import Any

import numpy as np

from counterpoint.report._curves import bin_means, pair_name
from counterpoint.report._detail import Detail
from counterpoint.report._read import Grams
from counterpoint.report._text import clean
from counterpoint.series import series_mean, verdicts

MAX_MODULES = 160
"""Rows a heat map can show. Larger models are shown by layer: Grams of a layer's modules simply add."""


def module_cosines(grams: Grams | None, detail: Detail) -> dict[str, Any] | None:
    """Modules in layer order, domain pairs, and their cosines over steps and averaged over all steps.

    None where no recorded step has two domains, as in a run that trains one after another.
    ``cosine[q][g][b]`` is pair q in module g, averaged over the steps of bin b, from ``step[b]``
    to ``step_end[b]``.
    ``overall[q][g]`` holds the mean over steps, its standard error, the share of steps with a negative cosine, and the
    ``verdict`` that ``diagnose`` gives for the same Grams: -1 conflict, 1 synergy, 0 within noise or not known.
    """
    if grams is None or len(grams.step_S) == 0 or len(grams.domains) < 2 or not grams.groups:
        return None
    groups, gram_SGDD = _in_layer_order(grams)
    pairs = [(i, j) for i in range(len(grams.domains)) for j in range(i + 1, len(grams.domains))]
    shown = pairs[: max(1, detail.heat_cells // (12 * len(groups)))]
    num_bins = min(len(grams.step_S), 120, max(1, detail.heat_cells // (len(shown) * len(groups))))
    cosine_QSG = np.stack([_cosine(gram_SGDD, i, j) for i, j in shown])
    cosine_QGB = np.stack([bin_means(cosine_SG, num_bins, _nanmean).T for cosine_SG in cosine_QSG])
    bins = np.array_split(grams.step_S, num_bins)
    finite = np.isfinite(cosine_QSG)
    if not finite.any():  # one domain after another
        return None
    return {
        "modules": [clean(name, 60) for name in groups],
        "pairs": [pair_name(grams.domains[i], grams.domains[j]) for i, j in shown],
        "pairs_left_out": len(pairs) - len(shown),
        "by_layer": len(groups) < len(grams.groups),
        "step": [int(steps[0]) for steps in bins],
        "step_end": [int(steps[-1]) for steps in bins],
        "recorded_steps": len(grams.step_S),
        "cosine": _nested(cosine_QGB),
        "overall": _overall(cosine_QSG),
        "negative_share": float((cosine_QSG[finite] < 0).mean()),
        "limit": _colour_limit(cosine_QGB),
    }


def layer_key(name: str) -> tuple[int, int, str]:
    """Sorts module names as a forward pass meets them: embedding, layers by number, final norm, ``lm_head``."""
    layer = re.search(r"\d+", name)
    if layer and name.startswith("layer"):
        return (1, int(layer.group()), name)
    ends = {"lm_head": 4, "norm": 2}
    return (0 if "embed" in name else ends.get(name, 3), 0, name)


def _in_layer_order(grams: Grams) -> tuple[list[str], np.ndarray]:
    order = sorted(range(len(grams.groups)), key=lambda index: layer_key(grams.groups[index]))
    groups, gram_SGDD = [grams.groups[index] for index in order], grams.gram_SGDD[:, order]
    if len(groups) <= MAX_MODULES:
        return groups, gram_SGDD
    layers = [".".join(name.split(".")[:2]) if name.startswith("layer") else name for name in groups]
    names = list(dict.fromkeys(layers))
    members = [[index for index, layer in enumerate(layers) if layer == name] for name in names]
    merged_SGDD = np.stack([gram_SGDD[:, member].sum(axis=1) for member in members], axis=1)
    return names[:MAX_MODULES], merged_SGDD[:, :MAX_MODULES]


def _cosine(gram_SGDD: np.ndarray, i: int, j: int) -> np.ndarray:
    """Cosine of domains i and j [S, G]; NaN where either is absent or has no gradient."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = gram_SGDD[..., i, j] / np.sqrt(gram_SGDD[..., i, i] * gram_SGDD[..., j, j])
    return np.where(np.isfinite(cosine), np.clip(cosine, -1, 1), np.nan)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=axis)
    return np.where(counts > 0, np.nansum(values, axis=axis) / np.maximum(counts, 1), np.nan)


def _overall(cosine_QSG: np.ndarray) -> list[list[dict[str, float | None]]]:
    found = [[series_mean(column) for column in cosine_SG.T] for cosine_SG in cosine_QSG]
    marks = iter(verdicts([one for row in found for one in row]))
    return [
        [
            {
                "mean": _rounded(one.mean, 4),
                "standard_error": _rounded(one.standard_error, 4),
                "negative": _negative_share(column),
                "verdict": next(marks),
            }
            for one, column in zip(row, cosine_SG.T, strict=True)
        ]
        for row, cosine_SG in zip(found, cosine_QSG, strict=True)
    ]


def _negative_share(column: np.ndarray) -> float | None:
    known = column[np.isfinite(column)]
    return round(float((known < 0).mean()), 3) if len(known) else None


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _colour_limit(cosine_QGB: np.ndarray) -> float:
    """Where the colours end: wide enough for all but the most extreme 2 % of cells, so that one cell cannot wash out
    the rest, and never so narrow that rounding looks like conflict."""
    finite = np.abs(cosine_QGB[np.isfinite(cosine_QGB)])
    return round(max(0.05, float(np.quantile(finite, 0.98))), 3) if len(finite) else 1.0


def _nested(cosine_QGB: np.ndarray) -> list[list[list[float | None]]]:
    return [
        [[round(value, 3) if np.isfinite(value) else None for value in row] for row in plane]
        for plane in cosine_QGB.tolist()
    ]
