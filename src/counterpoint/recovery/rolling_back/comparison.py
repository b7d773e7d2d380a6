"""Scores of models beside each other, paired by prompt. Pure functions."""

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

from counterpoint.diagnosis.statistics import Estimate, bootstrap
from counterpoint.evaluation import DomainScore
from counterpoint.evaluation.intervals import difference_interval
from counterpoint.recovery.rolling_back.results import Reported
from counterpoint.recovery.rolling_back.trials import Scored


def change(before: DomainScore, after: DomainScore) -> Estimate:
    """The mean change of reward from one to the other."""
    found = difference_interval(before.scores, after.scores)
    return Estimate(found.mean, found.low, found.high)


def row(name: str, draw: int | None, scored: Scored, after: Scored) -> Reported:
    """One model's scores, and its changes against ``after``."""
    scores = {domain: Estimate(score.mean, score.low, score.high) for domain, score in scored.items()}
    return Reported(name, draw, scores, {domain: change(after[domain], score) for domain, score in scored.items()})


def beyond(own: DomainScore, random: Sequence[DomainScore]) -> Estimate:
    """How much more than the mean of the random draws."""
    means = [fmean(values) for values in zip(*(score.scores for score in random), strict=True)]
    found = difference_interval(means, own.scores)
    return Estimate(found.mean, found.low, found.high)


def restored(before: Sequence[float], after: Sequence[float], now: Sequence[Sequence[float]]) -> Estimate:
    """``(now - after) / (before - after)``: the part of a loss that came back, its interval over resampled prompts.

    Args:
        before: mean score of every prompt before the loss [P].
        after: after it [P].
        now: of one or several models, whose mean is taken [P] each.
    """
    gone = torch.tensor([b - a for b, a in zip(before, after, strict=True)], dtype=torch.float64)
    means = [fmean(values) for values in zip(*now, strict=True)]
    back = torch.tensor([n - a for n, a in zip(means, after, strict=True)], dtype=torch.float64)
    return bootstrap(torch.stack([back, gone], 1), _ratio)


def _ratio(resamples_RP2: Tensor) -> Tensor:
    sums_R2 = resamples_RP2.sum(1)
    return sums_R2[:, 0] / sums_R2[:, 1]
