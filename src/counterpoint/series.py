"""What the mean of a series over steps says, where steps resemble their neighbours.

One step's cosine between two gradients is mostly noise, so nothing is said about one step: means over steps, with
standard errors from means over blocks of consecutive steps (non-overlapping batch means; Glynn and Whitt, 1991). Steps
taken for independent would call noise significant: with an autocorrelation of 0.8 in a third of all cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from counterpoint.stats import student_p_value

LOWEST_STEPS = 16
"""Steps below which a standard error means nothing: four blocks of four."""


@dataclass(frozen=True)
class SeriesMean:
    """The mean of a series and what is known of it; ``p_value`` is two-sided, of a true mean of zero.

    NaN: no step at all (``mean``), or fewer than 16 steps, or a series without variation (the others).
    """

    mean: float
    standard_error: float
    p_value: float


def series_mean(values_T: ArrayLike) -> SeriesMean:
    """The mean over the steps [T] that are finite numbers; blocks are about the square root of the series long.

    The mean over its standard error is compared with Student's t of ``blocks - 1`` degrees of freedom.
    """
    values = np.asarray(values_T, dtype=np.float64)
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < LOWEST_STEPS:
        return SeriesMean(mean, math.nan, math.nan)
    length = math.isqrt(len(values))
    blocks = len(values) // length
    means_B = values[len(values) - blocks * length :].reshape(blocks, length).mean(axis=1)
    error = float(means_B.std(ddof=1) / math.sqrt(blocks))
    return SeriesMean(mean, error, student_p_value(mean / error, blocks - 1) if error > 0 else math.nan)


def verdicts(found: Sequence[SeriesMean], level: float = 0.05) -> list[int]:
    """-1 (below zero), 1 (above) or 0 (within noise, or not known) of every series, corrected for their number.

    The false discovery rate is at most ``level`` where the series are independent or positively dependent.
    """
    tested = [i for i, one in enumerate(found) if math.isfinite(one.p_value)]
    rejected = benjamini_hochberg([found[i].p_value for i in tested], level)
    result = [0] * len(found)
    for i, is_rejected in zip(tested, rejected, strict=True):
        result[i] = (1 if found[i].mean > 0 else -1) if is_rejected else 0
    return result


def benjamini_hochberg(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses are rejected at a false discovery rate of ``level`` (Benjamini and Hochberg, 1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    count = 0
    for rank, i in enumerate(order, 1):
        if p_values[i] <= level * rank / len(p_values):
            count = rank
    rejected = set(order[:count])
    return [i in rejected for i in range(len(p_values))]
