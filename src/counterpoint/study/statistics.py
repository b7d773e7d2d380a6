"""What a few seeds can say: intervals over seeds, planned contrasts, and the power to see a difference.

A contrast is a difference of two rows, paired by seed, and judged by Student's paired t test. It takes differences to
be about normal, which means over hundreds of sampled answers are. Holm's correction covers the planned contrasts alone:
with 75 comparisons five seeds see a difference of 0.04 in one study of ten (standard deviation 0.0185 between seeds),
with three planned ones in three of four. Pure functions on plain numbers.
"""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from scipy.special import bdtr, nctdtr

from counterpoint.stats import Estimate, student_p_value, student_quantile

Key = TypeVar("Key", bound=Hashable)
Verdict = Literal["better", "worse", "not decided"]

LEVEL = 0.05
"""Chance of calling any planned contrast better or worse where none differs."""
POWER = 0.8
"""Chance of seeing a difference that is asked of a number of seeds."""
MOST_SEEDS = 1000
_SAME = 1e-12
"""Values that differ by less are the same."""


@dataclass(frozen=True)
class Decision:
    """What a planned contrast shows.

    ``change`` has its own 95 % interval, not corrected; ``p`` by Student's paired t; ``p_corrected`` after Holm's
    correction for all planned contrasts, and the verdict goes by that. ``spread`` is the standard deviation of the
    differences over seeds. NaN where the seeds give none.
    """

    change: Estimate
    p: float
    p_corrected: float
    verdict: Verdict
    spread: float


def over_seeds(values: Sequence[float], bounds: tuple[float, float] | None = None) -> Estimate:
    """The mean of ``values``, one of each seed, with Student's 95 % interval cut at ``bounds``.

    There is no interval (NaN) where the seeds give none: of one seed, and of seeds that are all equal, whose spread of
    zero says that scores are coarse and not that they are certain.
    """
    mean = math.fsum(values) / len(values)
    spread = standard_deviation(values)
    if not spread > 0:
        return Estimate(mean, math.nan, math.nan)
    half = student_quantile(0.975, len(values) - 1) * spread / math.sqrt(len(values))
    low, high = bounds or (-math.inf, math.inf)
    return Estimate(mean, max(mean - half, low), min(mean + half, high))


def score_over_seeds(values: Sequence[float]) -> Estimate:
    """The same for scores, which end at 0 and 1 where all of them lie there."""
    return over_seeds(values, (0.0, 1.0) if _in_unit(values) else None)


def change_over_seeds(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean of ``after - before``, entry i of both with the same seed; of scores in [0, 1] it ends at -1 and 1."""
    changes = [b - a for a, b in zip(before, after, strict=True)]
    return over_seeds(changes, (-1.0, 1.0) if _in_unit([*before, *after]) else None)


def standard_deviation(values: Sequence[float]) -> float:
    """The standard deviation over seeds; NaN for one seed, 0 where all are equal."""
    count = len(values)
    if count < 2:
        return math.nan
    if max(values) - min(values) < _SAME:
        return 0.0
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))


def decide(
    pairs: Mapping[Key, tuple[Sequence[float], Sequence[float]]], count: int, yes_or_no: Collection[Key] = ()
) -> dict[Key, Decision]:
    """A decision on every planned contrast, all of them together wrong in at most 5 % of studies without differences.

    Args:
        pairs: the reference's and the row's values by contrast, entry i of both with the same seed; at least one.
        count: planned contrasts, those without values yet included.
        yes_or_no: contrasts whose values are 0 and 1, and less is better; they go by McNemar's exact test.
    """
    changes = {key: [b - a for a, b in zip(before, after, strict=True)] for key, (before, after) in pairs.items()}
    p_values = {
        key: mcnemar_p(*pairs[key]) if key in yes_or_no else _paired_p(values) for key, values in changes.items()
    }
    corrected = holm({key: p for key, p in p_values.items() if not math.isnan(p)}, count)
    decisions = {}
    for key, (before, after) in pairs.items():
        change, p = change_over_seeds(before, after), corrected.get(key, math.nan)
        verdict: Verdict = "not decided"
        if p < LEVEL:
            verdict = "better" if (change.value > 0) != (key in yes_or_no) else "worse"
        decisions[key] = Decision(change, p_values[key], p, verdict, standard_deviation(changes[key]))
    return decisions


def _paired_p(changes: Sequence[float]) -> float:
    """Two-sided p of Student's t test; NaN where there is no spread to judge by, and 1 where nothing changed at all."""
    spread = standard_deviation(changes)
    if not spread > 0:
        return 1.0 if spread == 0 and abs(changes[0]) < _SAME else math.nan
    mean = math.fsum(changes) / len(changes)
    return student_p_value(mean / spread * math.sqrt(len(changes)), len(changes) - 1)


def mcnemar_p(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p of McNemar's exact test on pairs of yes (1) and no (0): a pair that differs does so either way.

    Q. McNemar (1947), Psychometrika 12:153.
    """
    more = sum(a < b for a, b in zip(before, after, strict=True))
    less = sum(a > b for a, b in zip(before, after, strict=True))
    return min(1.0, 2 * float(bdtr(min(more, less), more + less, 0.5)))


def holm(p_values: Mapping[Key, float], count: int) -> dict[Key, float]:
    """p-values corrected for ``count`` comparisons: all of them at once are wrong no more often than each claims to be.

    S. Holm (1979), Scandinavian Journal of Statistics 6:65. Valid however the comparisons depend on each other.
    """
    corrected: dict[Key, float] = {}
    highest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        highest = max(highest, min(1.0, (count - rank) * p_values[key]))
        corrected[key] = highest
    return {key: corrected[key] for key in p_values}


def power(effect: float, spread: float, num_seeds: int, level: float = LEVEL) -> float:
    """The chance that a paired t test at ``level`` sees a true difference ``effect``.

    Args:
        effect: in the unit of the scores.
        spread: standard deviation of the paired differences over seeds, in the same unit; positive.
        num_seeds: seeds, at least two; fewer see nothing.
        level: two-sided. Holm's first step among m contrasts has ``LEVEL / m``, so that this is then the least chance.

    By the noncentral t distribution (J. Cohen 1988, Statistical Power Analysis, chapter 2).
    """
    if num_seeds < 2:
        return 0.0
    degrees, shift = num_seeds - 1, effect / spread * math.sqrt(num_seeds)
    limit = student_quantile(1 - level / 2, degrees)
    below, above = (float(nctdtr(degrees, shift, t)) for t in (-limit, limit))
    # SciPy gives NaN where the shift is so large that the test cannot fail to see it.
    return 1.0 if math.isnan(below) or math.isnan(above) else 1 - above + below


def seeds_for(effect: float, spread: float, level: float = LEVEL) -> int | None:
    """The fewest seeds whose power for ``effect`` is at least 0.8; None where a thousand are too few."""
    low, high = 1, 2
    while power(effect, spread, high, level) < POWER:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, spread, middle, level) >= POWER else (middle, high)
    return high


def _in_unit(values: Sequence[float]) -> bool:
    return min(values) >= 0 and max(values) <= 1
