"""What ``study.json`` holds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.diagnosis import results
from counterpoint.disk import write_json
from counterpoint.study.outcome import Cost
from counterpoint.study.statistics import Spread

SCHEMA = "counterpoint.study"
VERSION = 1
AVERAGE = "average"
"""Beside the domains in ``RowResult.difference``: the mean over all domains."""


@dataclass(frozen=True)
class Score:
    """A mean over seeds, its 95 % interval, and the value of each seed that is done.

    The base is evaluated once: its interval is over prompts, and ``by_seed`` has one value.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Compared:
    """A mean difference from the reference row, paired by seed, with its 95 % interval.

    ``p`` by Student's paired t, ``p_sign_flip`` by flipping signs, ``p_corrected`` is ``p`` after Holm's correction for
    all comparisons of the study; the verdict goes by that.
    """

    mean: float
    low: float
    high: float
    p: float
    p_sign_flip: float
    p_corrected: float
    verdict: str


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    seed: int | None
    reason: str


@dataclass(frozen=True)
class RowResult:
    """One row of the table. ``scores`` is empty and ``average``, ``cost`` None where nothing is done yet.

    ``seeds_planned`` counts the row's own seeds; 0 for the base, which has none.
    ``difference`` is that from the reference row, ``difference_of`` that from the row ``of`` which this one is made of.
    """

    name: str
    kind: str
    description: str
    seeds_done: tuple[int, ...]
    failed: tuple[Failure, ...]
    seeds_planned: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    average: Score | None = None
    difference: dict[str, Compared] | None = None
    of: str | None = None
    difference_of: dict[str, Compared] | None = None
    forgetting: dict[str, Spread] | None = None
    rigidity: dict[str, Spread] | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class StudyResult:
    """A whole study."""

    name: str
    reference: str
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    budget: dict[str, Any]
    settings: dict[str, Any]
    rows: tuple[RowResult, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]


def to_json(result: StudyResult) -> dict[str, Any]:
    """``result`` as JSON values, numbers that JSON lacks as null."""
    return results.to_json("study", result) | {"schema": SCHEMA, "version": VERSION}


def write_result(path: Path, result: StudyResult) -> None:
    """Writes ``to_json``, whole or not at all."""
    write_json(path, to_json(result))
