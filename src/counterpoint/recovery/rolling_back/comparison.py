"""Scores of models beside each other, paired by prompt. Pure functions."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

from counterpoint.evaluation import DomainScore
from counterpoint.recovery.rolling_back.results import Reported
from counterpoint.recovery.rolling_back.trials import Scored
from counterpoint.stats import Estimate, Scores, difference_interval, student_quantile


def change(before: DomainScore, after: DomainScore) -> Estimate:
    """The mean change of reward from one to the other."""
    return difference_interval(before.scores, after.scores)


def row(name: str, draw: int | None, scored: Scored, after: Scored) -> Reported:
    """One model's scores, and its changes against ``after``."""
    scores = {domain: Estimate(score.mean, score.low, score.high) for domain, score in scored.items()}
    return Reported(name, draw, scores, {domain: change(after[domain], score) for domain, score in scored.items()})


def beyond(own: DomainScore, random: Sequence[DomainScore]) -> Estimate:
    """How much more than the mean of the random draws."""
    return difference_interval(_means([score.scores for score in random]), own.scores)


def restored(before: Scores, after: Scores, now: Sequence[Scores]) -> Estimate:
    """``(now - after) / (before - after)``: the part of a loss that came back, with Fieller's interval over prompts.

    The interval is that of a ratio of two means from the same prompts: all ratios r for which ``back - r gone`` has a
    mean that Student's t cannot tell from 0. It is infinite where the loss itself cannot be told from 0.

    Source: E. C. Fieller (1954), J. Royal Statistical Society B 16:175.

    Args:
        before: mean score of every prompt before the loss [P].
        after: after it [P].
        now: of one or several models, whose mean is taken [P] each.
    """
    gone, back = [], []
    for b, a, n in zip(before, after, _means(now), strict=True):
        if b is not None and a is not None and n is not None:
            gone.append(b - a)
            back.append(n - a)
    if not gone:
        return Estimate(math.nan, -math.inf, math.inf)
    top, bottom, count = fmean(back), fmean(gone), len(gone)
    if count < 2 or bottom == 0:
        return Estimate(top / bottom if bottom else math.nan, -math.inf, math.inf)
    t2 = student_quantile(0.975, count - 1) ** 2 / count
    products = sum((b - top) * (g - bottom) for b, g in zip(back, gone, strict=True)) / (count - 1)
    # (top - r bottom)^2 = t2 (var_back - 2 r cov + r^2 var_gone)
    a = bottom**2 - t2 * variance(gone)
    b = top * bottom - t2 * products
    c = top**2 - t2 * variance(back)
    if a <= 0:
        return Estimate(top / bottom, -math.inf, math.inf)
    half = math.sqrt(max(0.0, b**2 - a * c))
    return Estimate(top / bottom, (b - half) / a, (b + half) / a)


def _means(scores: Sequence[Scores]) -> list[float | None]:
    """The mean over models of every prompt's score; None where one of them lacks it."""
    found: list[float | None] = []
    for values in zip(*scores, strict=True):
        known = [value for value in values if value is not None]
        found.append(fmean(known) if len(known) == len(values) else None)
    return found
