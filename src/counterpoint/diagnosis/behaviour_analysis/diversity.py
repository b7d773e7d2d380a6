"""Distinct n-grams of completions at equal numbers of n-grams, so that longer completions do not look less diverse.

With N n-grams of which kind i occurs ``c_i`` times, the expected number of kinds among K drawn without replacement is
``sum_i 1 - C(N - c_i, K) / C(N, K)`` (rarefaction: S. H. Hurlbert, 1971, Ecology 52:577). Exact; nothing is drawn.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

SIZES = (1, 2, 3)
"""The n of the n-grams."""

FEW_WORDS = 3
"""Completions whose mean length is below this many words are cut into characters instead."""

SWAPS = 1000
"""Random swaps of before and later behind a p-value."""


@dataclass(frozen=True)
class Diversity:
    """Share of distinct n-grams among ``drawn`` n-grams of a domain's sample completions at one step.

    ``unit`` is ``word`` or ``character``, the same for all steps of a domain. ``p_value``: how often swapping, prompt
    by prompt, the completion at this step with that of the first one changes ``distinct`` at least as much as seen;
    None at the first step, or where the prompts differ.
    """

    domain: str
    step: int
    n: int
    unit: str
    distinct: float
    drawn: int
    completions: int
    p_value: float | None


def distinct_share(counts: Mapping[object, int], drawn: int) -> float:
    """Expected number of distinct kinds among ``drawn`` of these things, over ``drawn``; nan for none.

    >>> round(distinct_share({"a": 2, "b": 2}, 2), 4)  # of two drawn: 1 kind in 1/3 of cases, 2 in 2/3
    0.8333
    """
    total = sum(counts.values())
    if not 0 < drawn <= total:
        return math.nan
    logs = [_log_choose(total - count, drawn) - _log_choose(total, drawn) for count in counts.values()]
    return math.fsum(1 - math.exp(log) for log in logs) / drawn


def diversities(completions: Mapping[tuple[str, int], Mapping[str, str]], seed: int = 0) -> list[Diversity]:
    """The diversity of every domain at every step, at the smallest number of n-grams that any of its steps has.

    Args:
        completions: completion by prompt, for every ``(domain, step)``.
        seed: of the private random stream behind the p-values.
    """
    found = []
    for domain in dict.fromkeys(domain for domain, _ in completions):
        by_step = {step: texts for (name, step), texts in sorted(completions.items()) if name == domain}
        unit = _unit([text for texts in by_step.values() for text in texts.values()])
        for n in SIZES:
            found += _of_domain(domain, by_step, n, unit, random.Random(seed))
    return found


def _of_domain(
    domain: str, by_step: Mapping[int, Mapping[str, str]], n: int, unit: str, stream: random.Random
) -> list[Diversity]:
    grams = {step: {prompt: _grams(text, n, unit) for prompt, text in texts.items()} for step, texts in by_step.items()}
    drawn = min(sum(map(len, texts.values())) for texts in grams.values())
    if not drawn:
        return []
    first = next(iter(grams.values()))
    return [
        Diversity(
            domain=domain,
            step=step,
            n=n,
            unit=unit,
            distinct=_distinct(texts.values(), drawn),
            drawn=drawn,
            completions=len(texts),
            p_value=None if texts is first else _p_value(first, texts, stream),
        )
        for step, texts in grams.items()
    ]


def _p_value(
    first: Mapping[str, list[object]], later: Mapping[str, list[object]], stream: random.Random
) -> float | None:
    """Two-sided p-value of the difference in distinct n-grams, by swaps within prompts."""
    if first.keys() != later.keys() or len(first) < 2:
        return None
    pairs = [(first[prompt], later[prompt]) for prompt in first]
    seen = _gap(pairs)
    extreme = 0
    for _ in range(SWAPS):
        swapped = [pair if stream.random() < 0.5 else pair[::-1] for pair in pairs]
        extreme += _gap(swapped) >= seen - 1e-12
    return (extreme + 1) / (SWAPS + 1)


def _gap(pairs: Sequence[tuple[list[object], list[object]]]) -> float:
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    drawn = min(sum(map(len, side)) for side in sides)
    return abs(_distinct(sides[0], drawn) - _distinct(sides[1], drawn)) if drawn else 0.0


def _distinct(grams: Iterable[list[object]], drawn: int) -> float:
    return distinct_share(Counter(chain.from_iterable(grams)), drawn)


def _grams(text: str, n: int, unit: str) -> list[object]:
    """n-grams within one completion; none cross from one to the next."""
    pieces: Sequence[str] = text.split() if unit == "word" else text
    return [tuple(pieces[i : i + n]) for i in range(len(pieces) - n + 1)]


def _unit(texts: Sequence[str]) -> str:
    words = sum(len(text.split()) for text in texts) / max(1, len(texts))
    return "word" if words >= FEW_WORDS else "character"


def _log_choose(n: int, k: int) -> float:
    return -math.inf if k > n else math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
