"""Intervals for held-out scores, and when a domain has fallen, is back, or was harmed.

Prompts are the independent units; several samples of one prompt are not. Every change is judged in pairs by prompt,
which removes what makes prompts differ.

Scores in [0, 1] get a score (Wilson) interval whose sample size is the *effective* one: the number of independent
yes/no draws that would leave the mean as uncertain as the prompts do. Wilson's form stays inside [0, 1] and keeps
its width where every answer was right or wrong, where the textbook ``mean +- t s/sqrt(n)`` shrinks to a point and
claims certainty. With n prompts of mean score x_i, mean m, and S = sum (x_i - m)^2::

    ratio  = (S + 1) / (n m (1 - m) + 1)         variance seen, over the largest a [0, 1] score of mean m can have
    n_eff  = n / ratio
    [low, high] = all p with (m - p)^2 <= t^2 p (1 - p) / n_eff,     t: Student's quantile with n - 1 degrees

The two ones stand for one further prompt of unknown score. They matter only where the prompts say little about
their own spread: all scores equal gives about the "rule of three" instead of zero width, and one odd success among
failures cannot make the interval narrower than no success at all. Student's t stands in for the normal quantile
because the spread is estimated from n prompts.

Changes d_i of such scores lie in [-1, 1] and are mostly zero where a domain is nearly solved; what then decides is how
often a prompt flips, and a few prompts say little about that. So Student's interval is taken over the n changes and two
further ones of the size that was seen, where the size starts from two whole flips (ours, calibrated by simulation)::

    size   = (2 + sum d_i^2) / (2 + number of d_i that are not 0)
    half   = t sqrt((sum (d_i - mean)^2 + 2 size) / (n (n - 1)))

Where every prompt moved by the same little this is narrow; where none moved it is about the "rule of three".

Sources: E. B. Wilson (1927), JASA 22:209; effective sample sizes and t for clustered proportions in E. L. Korn and
B. I. Graubard (1998), Survey Methodology 24:193; the Wilson form of it found best among seven in C. Franco,
R. J. A. Little, T. A. Louis and E. V. Slud (2019), J. Survey Statistics and Methodology 7:334.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtr, stdtrit

from counterpoint.errors import CounterpointError

LEVEL = 0.95
"""Confidence of the intervals by which a refresh starts and stops."""

Scores = Sequence[float | None]
"""One number per prompt, the mean over its samples; None where no sample of the prompt could be scored."""


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval, 95 % where nothing else is said, in its own unit."""

    value: float
    low: float
    high: float


def mean_interval(per_prompt_means: Scores, confidence: float = 0.95) -> Estimate:
    """The mean score over prompts with its interval, for prompts drawn independently from a domain.

    Args:
        per_prompt_means: one number per prompt, the mean over that prompt's samples [num_prompts]; prompts without
            a score are left out.
        confidence: the nominal coverage, e.g. 0.95.

    Scores outside [0, 1] (a reward model's, say) have no known bounds and get the plain t interval. One prompt tells
    nothing of the spread: its interval is [0, 1], or infinite without bounds.

    Raises:
        CounterpointError: no prompts, a score that is not finite, or a confidence outside (0, 1).
    """
    scores = _checked([score for score in per_prompt_means if score is not None], "per_prompt_means")
    quantile = _quantile(len(scores), confidence)
    if min(scores) < 0 or max(scores) > 1:
        return _t_interval(scores, quantile)
    return _score_interval(scores, quantile)


def difference_interval(before: Scores, after: Scores, confidence: float = 0.95) -> Estimate:
    """The mean change ``after - before`` with its interval, paired: entry i of both is the same prompt [num_prompts].

    Prompts without a score in one of them are left out.

    Pairing removes what makes prompts differ from each other, so this is narrower than comparing two separate
    intervals. Changes of scores in [0, 1] get Student's interval with two further prompts (see the module); changes of
    other scores get Student's interval as it is.

    Raises:
        CounterpointError: sequences of unequal length, and everything ``mean_interval`` refuses.
    """
    if len(before) != len(after):
        raise CounterpointError(
            f"before and after must score the same prompts in the same order; found {len(before)} and {len(after)} "
            "prompts. Evaluate both on one held-out set."
        )
    both = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    first, second = _checked([b for b, _ in both], "before"), _checked([a for _, a in both], "after")
    changes = [b - a for a, b in zip(first, second, strict=True)]
    quantile = _quantile(len(changes), confidence)
    if min(first + second) < 0 or max(first + second) > 1:
        return _t_interval(changes, quantile)
    return _change_interval(changes, quantile)


def mean_of_independent(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as those of domains, which share no prompt.

    Its interval is recovered from theirs (MOVER): each side is the root of the sum of squares of their distances on
    that side, over their number. It keeps the confidence that theirs have, and their asymmetry.

    Source: G. Y. Zou and A. Donner (2008), Statistics in Medicine 27:1693.
    """
    count = len(estimates)
    mean = math.fsum(one.value for one in estimates) / count
    below = math.sqrt(math.fsum((one.value - one.low) ** 2 for one in estimates)) / count
    above = math.sqrt(math.fsum((one.high - one.value) ** 2 for one in estimates)) / count
    return Estimate(mean, mean - below, mean + above)


@dataclass(frozen=True)
class Former:
    """What a domain scored when it was good: mean with its 95 % interval, and the score of every prompt.

    ``scores`` is None where only a number is known; its interval is that number.
    """

    mean: float
    low: float
    high: float
    scores: tuple[float | None, ...] | None = None

    @classmethod
    def of_scores(cls, scores: Scores) -> "Former":
        """From the scores of an evaluation."""
        interval = mean_interval(scores, LEVEL)
        return cls(interval.value, interval.low, interval.high, tuple(scores))

    @classmethod
    def of_number(cls, mean: float) -> "Former":
        """From a number alone: back means to reach it."""
        return cls(mean, mean, mean)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "scores": None if self.scores is None else list(self.scores)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Former":
        """What ``to_json`` gave."""
        scores = fields["scores"]
        return cls(fields["mean"], fields["low"], fields["high"], None if scores is None else tuple(scores))


MARGIN = 0.03
"""How far a score may lie from another one and still count as the same, in the unit of the scores."""


@dataclass(frozen=True)
class Standing:
    """What a repair did to the domain that it was made for.

    ``gain`` is now minus start, paired by prompt; its interval holds for all looks at once. ``missing`` is the former
    mean minus the mean now. ``verdict``: ``back`` (the gain is beyond noise and at most the margin is missing),
    ``improved`` (the gain is beyond noise), ``fell`` (the loss is), or ``not proven``.
    """

    verdict: Literal["back", "improved", "not proven", "fell"]
    gain: Estimate
    missing: float


def standing(former: float, start: Scores, now: Scores, *, looks: int = 1, margin: float = MARGIN) -> Standing:
    """How a domain stands after a repair that is judged up to ``looks`` times.

    Where the repair changes nothing, it is called back or improved with a chance of at most 2.5 % over all looks
    (Bonferroni): ``back`` is never the absence of a difference.
    """
    gain = difference_interval(start, now, 1 - 0.05 / looks)
    missing = former - mean_interval(now).value
    if gain.low > 0:
        return Standing("back" if missing <= margin else "improved", gain, missing)
    return Standing("fell" if gain.high < 0 else "not proven", gain, missing)


Harm = Literal["harmed", "spared", "unclear"]


def harm(change: Estimate, margin: float = MARGIN) -> Harm:
    """What a repair did to another domain, by its change since the start with the interval that is to decide.

    ``harmed``: it fell beyond noise, and by more than the margin; ``spared``: a fall of more than the margin is
    excluded; ``unclear``: neither, which is no evidence that nothing happened.
    """
    if change.high < 0 and change.value < -margin:
        return "harmed"
    return "spared" if change.low >= -margin else "unclear"


def has_fallen(former: Scores, now: Scores, level: float) -> bool:
    """One-sided paired test at ``level``: whether the interval of confidence ``1 - 2 level`` of the change from
    ``former`` to ``now`` lies wholly below zero.
    """
    return difference_interval(former, now, 1 - 2 * level).high < 0


def student_quantile(probability: float, degrees: int) -> float:
    """The point of Student's t with ``degrees`` degrees of freedom below which ``probability`` of it lies."""
    return float(stdtrit(degrees, probability))


def student_p_value(t: float, degrees: int) -> float:
    """The chance that Student's t with ``degrees`` degrees of freedom is as far from zero as ``t``, on either side."""
    return float(2 * stdtr(degrees, -abs(t)))


def _score_interval(scores: list[float], quantile: float) -> Estimate:
    num_prompts = len(scores)
    mean = min(max(math.fsum(scores) / num_prompts, 0.0), 1.0)
    if math.isinf(quantile):
        return Estimate(mean, 0.0, 1.0)
    spread = math.fsum((score - mean) ** 2 for score in scores)
    ratio = (spread + 1) / (num_prompts * mean * (1 - mean) + 1)
    # Wilson's two roots of (mean - p)^2 = slack * p (1 - p).
    slack = quantile**2 * ratio / num_prompts
    centre = (mean + slack / 2) / (1 + slack)
    half = math.sqrt(slack * mean * (1 - mean) + slack**2 / 4) / (1 + slack)
    return Estimate(mean, min(max(0.0, centre - half), mean), max(min(1.0, centre + half), mean))


def _change_interval(changes: list[float], quantile: float) -> Estimate:
    num_prompts, mean = len(changes), math.fsum(changes) / len(changes)
    if math.isinf(quantile):
        return Estimate(mean, -1.0, 1.0)
    spread = math.fsum((change - mean) ** 2 for change in changes)
    moved = sum(change != 0 for change in changes)
    size = (2 + math.fsum(change**2 for change in changes)) / (2 + moved)
    half = quantile * math.sqrt((spread + 2 * size) / (num_prompts - 1) / num_prompts)
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half))


def _t_interval(scores: list[float], quantile: float) -> Estimate:
    num_prompts = len(scores)
    mean = math.fsum(scores) / num_prompts
    if math.isinf(quantile):
        return Estimate(mean, -math.inf, math.inf)
    variance = math.fsum((score - mean) ** 2 for score in scores) / (num_prompts - 1)
    half = quantile * math.sqrt(variance / num_prompts)
    return Estimate(mean, mean - half, mean + half)


def _quantile(num_prompts: int, confidence: float) -> float:
    if not 0 < confidence < 1:
        raise CounterpointError(f"confidence must lie between 0 and 1, e.g. 0.95; found {confidence!r}.")
    return student_quantile((1 + confidence) / 2, num_prompts - 1) if num_prompts > 1 else math.inf


def _checked(values: Sequence[float], name: str) -> list[float]:
    scores = [float(value) for value in values]
    if not scores:
        raise CounterpointError(f"{name} is empty: an interval needs at least one prompt. Check the evaluation split.")
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise CounterpointError(
                f"{name}[{index}] must be a finite number; found {score!r}. Leave out prompts without a score."
            )
    return scores
