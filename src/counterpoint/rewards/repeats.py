"""How much a reward disagrees with itself: the same completions scored several times.

>>> told = repeated([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0]], ["p", "q"])
>>> f"{told.agreement.value:.3f} {told.variance.value:.4f}"
'0.667 0.0417'
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from counterpoint.stats import Estimate, mean_interval

Calls = Sequence[float | None]
"""The scores that one completion got, None where a call gave none."""


@dataclass(frozen=True)
class Repeats:
    """Agreement of repeated calls.

    ``mean`` is the mean score; ``agreement`` the chance that two calls for one completion give the same score;
    ``variance`` that of one call around its completion's mean (divided by calls - 1). Each has a 95 % interval over
    prompts, and is None where no completion was scored twice. ``unscored`` counts calls without a score.
    """

    completions: int
    calls: int
    unscored: int
    mean: Estimate | None
    agreement: Estimate | None
    variance: Estimate | None


def repeated(scores: Sequence[Calls], prompts: Sequence[object]) -> Repeats:
    """The agreement of the scores of every completion [completions][calls]; ``prompts`` names each one's prompt."""
    known = [[score for score in calls if score is not None] for calls in scores]
    twice = [(calls, prompt) for calls, prompt in zip(known, prompts, strict=True) if len(calls) > 1]
    once = [(calls, prompt) for calls, prompt in zip(known, prompts, strict=True) if calls]
    calls = sum(map(len, scores))
    return Repeats(
        completions=len(scores),
        calls=calls,
        unscored=calls - sum(map(len, known)),
        mean=_over_prompts((statistics.fmean(calls), prompt) for calls, prompt in once),
        agreement=_over_prompts((_agreement(calls), prompt) for calls, prompt in twice),
        variance=_over_prompts((statistics.variance(calls), prompt) for calls, prompt in twice),
    )


def _agreement(calls: Sequence[float]) -> float:
    return statistics.fmean(first == second for first, second in combinations(calls, 2))


def _over_prompts(values: Iterable[tuple[float, object]]) -> Estimate | None:
    """The mean over prompts, for completions to one prompt are not independent."""
    by_prompt: dict[object, list[float]] = {}
    for value, prompt in values:
        by_prompt.setdefault(prompt, []).append(value)
    return mean_interval([statistics.fmean(found) for found in by_prompt.values()]) if by_prompt else None
