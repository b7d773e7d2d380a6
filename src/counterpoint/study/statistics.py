"""What a few seeds can say: intervals over seeds, paired differences, and a correction for many comparisons.

Two tests stand side by side. Student's paired t decides: with five seeds it can tell a difference, at the price of
taking differences to be about normal, which means over hundreds of sampled answers are. The sign-flip test takes
nothing for granted but symmetry; with n seeds it cannot go below 2 / 2^n (0.0625 for five), so it is shown and never
decides. Pure functions on plain numbers.
"""

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from counterpoint.stats import student_p_value, student_quantile

Key = TypeVar("Key", bound=Hashable)
Verdict = Literal["better", "worse", "within noise"]

LEVEL = 0.05
MOST_EXACT = 16
"""Seeds up to which every sign is flipped; beyond, a fixed random sample of them."""
NUM_FLIPS = 20_000


@dataclass(frozen=True)
class Spread:
    """A mean over seeds with its 95 % interval; the interval is NaN for a single seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95 % interval, and the chance of one as large without any.

    ``p`` by Student's t, ``p_sign_flip`` by flipping signs.
    """

    mean: float
    low: float
    high: float
    p: float
    p_sign_flip: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and t interval of ``values``, one of each seed."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Spread(mean, math.nan, math.nan)
    half = student_quantile(0.975, count - 1) * _standard_error(values)
    return Spread(mean, mean - half, mean + half)


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> Difference | None:
    """How far ``values`` are from ``reference``, entry i of both with the same seed; None for fewer than two seeds.

    Differences that are all the same, and not zero, have no spread to be judged by: their interval is NaN and the
    sign-flip test stands in for Student's.
    """
    changes = [value - other for value, other in zip(values, reference, strict=True)]
    if len(changes) < 2:
        return None
    flipped = sign_flip_p(changes)
    around = spread(changes)
    error = _standard_error(changes)
    if error > 1e-12:
        p = student_p_value(around.mean / error, len(changes) - 1)
    elif abs(around.mean) < 1e-12:
        p = 1.0
    else:
        return Difference(around.mean, math.nan, math.nan, flipped, flipped)
    return Difference(around.mean, around.low, around.high, p, flipped)


def sign_flip_p(changes: Sequence[float]) -> float:
    """Share of all ways to flip the signs of ``changes`` whose mean is at least as far from zero.

    Exact up to 16 seeds: then it is a multiple of 2 / 2^n (E. J. G. Pitman 1937; R. A. Fisher 1935, section 21).
    """
    limit = abs(math.fsum(changes)) - 1e-12
    if len(changes) <= MOST_EXACT:
        sums = [0.0]
        for change in changes:
            sums = [total + side for total in sums for side in (change, -change)]
        return sum(abs(total) >= limit for total in sums) / len(sums)
    rng = random.Random(0)
    hits = sum(
        abs(math.fsum(change if rng.random() < 0.5 else -change for change in changes)) >= limit
        for _ in range(NUM_FLIPS)
    )
    return (1 + hits) / (1 + NUM_FLIPS)


def smallest_sign_flip_p(num_seeds: int) -> float:
    """The smallest value that ``sign_flip_p`` can have."""
    return 2.0 ** (1 - num_seeds) if num_seeds <= MOST_EXACT else 1 / (1 + NUM_FLIPS)


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """p-values corrected for their number: all of them at once are wrong no more often than each claims to be.

    S. Holm (1979), Scandinavian Journal of Statistics 6:65. Valid however the comparisons depend on each other.
    """
    corrected: dict[Key, float] = {}
    highest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = highest
    return {key: corrected[key] for key in p_values}


def verdict(mean: float, p_corrected: float) -> Verdict:
    """What may be said of a difference."""
    if p_corrected >= LEVEL or mean == 0:
        return "within noise"
    return "better" if mean > 0 else "worse"


def mean_of_independent(parts: Sequence[Spread]) -> Spread:
    """The mean of independent means with the interval that follows from theirs.

    Distances to the limits add in squares, each side for itself (G. Y. Zou and A. Donner 2008, Statistics in Medicine
    27:1693), so that limits that are not symmetric stay so.
    """
    count = len(parts)
    mean = math.fsum(part.mean for part in parts) / count
    below = math.sqrt(math.fsum((part.mean - part.low) ** 2 for part in parts)) / count
    above = math.sqrt(math.fsum((part.high - part.mean) ** 2 for part in parts)) / count
    return Spread(mean, mean - below, mean + above)


def _standard_error(values: Sequence[float]) -> float:
    count = len(values)
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
