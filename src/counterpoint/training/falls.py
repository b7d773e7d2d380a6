"""When a domain has fallen, and when it is back: tests on scores of the same held-out prompts, before and now.

Every change is judged in pairs by prompt (``difference_interval``), which removes what makes prompts differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.evaluation.intervals import Scores, difference_interval, mean_interval

LEVEL = 0.95
"""Confidence of the intervals by which a refresh starts and stops."""


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
        return cls(interval.mean, interval.low, interval.high, tuple(scores))

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


def is_back(former: Former, now: Scores) -> bool:
    """Whether a domain is back within the interval of its former score.

    Its mean reaches the low end of the 95 % interval of the former score, and the paired 95 % interval of the change
    does not lie below zero. Without scores of single prompts the second condition is left out.
    """
    if mean_interval(now).mean < former.low:
        return False
    return former.scores is None or difference_interval(former.scores, now, LEVEL).high >= 0


def is_harmed(start: Scores, now: Scores) -> bool:
    """Whether a domain fell below its own interval at the start: its mean below the low end of the 95 % interval
    that it had, and the paired 95 % interval of the change below zero.
    """
    return not is_back(Former.of_scores(start), now)


def has_fallen(former: Scores, now: Scores, level: float) -> bool:
    """One-sided paired test at ``level``: whether the interval of confidence ``1 - 2 level`` of the change from
    ``former`` to ``now`` lies wholly below zero.
    """
    return difference_interval(former, now, 1 - 2 * level).high < 0
