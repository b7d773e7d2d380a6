"""Distinct bigrams of completions at equal numbers of bigrams, so that longer completions do not look less diverse.

With N bigrams of which kind i occurs ``c_i`` times, the expected number of kinds among K drawn without replacement is
``sum_i 1 - C(N - c_i, K) / C(N, K)`` (rarefaction: S. H. Hurlbert, 1971, Ecology 52:577). Exact; nothing is drawn.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEW_WORDS = 3
"""Completions whose mean length is below this many words are cut into characters instead."""


@dataclass(frozen=True)
class Diversity:
    """Share of distinct bigrams among ``drawn`` bigrams of a domain's sample completions at one step.

    ``unit`` is ``word`` or ``character``, the same for all steps of a domain.
    """

    domain: str
    step: int
    unit: str
    distinct: float
    drawn: int
    completions: int


def distinct_share(counts: Mapping[Any, int], drawn: int) -> float:
    """Expected number of distinct kinds among ``drawn`` of these things, over ``drawn``; nan for none.

    >>> round(distinct_share({"a": 2, "b": 2}, 2), 4)  # of two drawn: 1 kind in 1/3 of cases, 2 in 2/3
    0.8333
    """
    total = sum(counts.values())
    if not 0 < drawn <= total:
        return math.nan
    logs = [_log_choose(total - count, drawn) - _log_choose(total, drawn) for count in counts.values()]
    return math.fsum(1 - math.exp(log) for log in logs) / drawn


def diversities(completions: Mapping[tuple[str, int], Mapping[str, str]]) -> list[Diversity]:
    """The diversity of every domain at every step, at the smallest number of bigrams that any of its steps has.

    Args:
        completions: completion by prompt, for every ``(domain, step)``.
    """
    found = []
    for domain in dict.fromkeys(domain for domain, _ in completions):
        by_step = {step: list(texts.values()) for (name, step), texts in sorted(completions.items()) if name == domain}
        unit = _unit([text for texts in by_step.values() for text in texts])
        counts = {step: Counter(g for text in texts for g in _bigrams(text, unit)) for step, texts in by_step.items()}
        drawn = min(kinds.total() for kinds in counts.values())
        found += [
            Diversity(domain, step, unit, distinct_share(kinds, drawn), drawn, len(by_step[step]))
            for step, kinds in counts.items()
            if drawn
        ]
    return found


def _bigrams(text: str, unit: str) -> Iterable[tuple[str, str]]:
    """Bigrams within one completion; none cross from one to the next."""
    return itertools.pairwise(text.split() if unit == "word" else text)


def _unit(texts: Sequence[str]) -> str:
    words = sum(len(text.split()) for text in texts) / max(1, len(texts))
    return "word" if words >= FEW_WORDS else "character"


def _log_choose(n: int, k: int) -> float:
    return -math.inf if k > n else math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
