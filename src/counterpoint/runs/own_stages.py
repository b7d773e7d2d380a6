"""What became of every domain of a sequential run from the end of its own stage to the end of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.stats import Interval, difference_interval

LEVEL = 0.05
"""Chance, over all comparisons together, of calling any of them a change where there is none."""


@dataclass(frozen=True)
class OwnStage:
    """A domain's evaluation at the end of its own, last stage (``own``; a refresh is none) and of the run (``end``).

    ``change`` is paired by prompt, with an interval that holds for all comparisons of the run at once (Bonferroni):
    every earlier domain after every later stage, as in ``counterpoint diagnose behaviour`` and ``recover``.
    """

    domain: str
    own: Mapping[str, Any]
    end: Mapping[str, Any]
    change: Interval

    @property
    def fell(self) -> bool:
        """Whether the domain lost something beyond noise."""
        return self.change.high < 0


def own_stages(stages: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> list[OwnStage]:
    """The domains that stages came after, in the order of their stages.

    Args:
        stages: the entries of ``run.json``.
        evals: the lines of ``evals.jsonl``.
    """
    ordered = sorted(stages, key=lambda entry: int(entry["last_step"]))
    last = {
        domain: number
        for number, entry in enumerate(ordered)
        if entry.get("kind", "train") == "train"
        for domain in entry["domains"]
    }
    lines = {(line["domain"], line["step"]): line for line in evals}
    found, comparisons = [], 0
    for domain, number in sorted(last.items(), key=lambda item: item[1]):
        steps = [entry["last_step"] for entry in ordered[number:]]
        own, *later = [lines.get((domain, step)) for step in steps]
        if own is None:
            continue
        comparisons += sum(line is not None for line in later)
        if later and later[-1] is not None:
            found.append((domain, own, later[-1]))
    return [
        OwnStage(domain, own, end, difference_interval(own["scores"], end["scores"], 1 - LEVEL / comparisons))
        for domain, own, end in found
    ]


def verdict(found: Sequence[OwnStage], run: str) -> str:
    """What fell, and the command that comes next; empty where no stage came after another."""
    if not found:
        return ""
    fell = [
        f"{one.domain} {one.change.mean:+.3f} [{one.change.low:+.3f}, {one.change.high:+.3f}]"
        for one in found
        if one.fell
    ]
    if not fell:
        return f"No domain fell beyond noise after its own stage. To look closer: counterpoint diagnose {run}"
    return f"Fell after its own stage: {', '.join(fell)}. To get it back: counterpoint recover {run}"
