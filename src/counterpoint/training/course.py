"""Which stage of a run comes next, and whether one ends early: decided by what was evaluated and nothing else.

A course keeps no state. It is asked with the stages that are done and the evaluations that are recorded, so a run that
was killed and is resumed takes the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from counterpoint.evaluation.intervals import Scores
from counterpoint.training.stages import Stage

Looks = Mapping[int, Mapping[str, Scores]]
"""The scores of every held-out prompt by the run's step and domain; the same prompts in the same order each time."""


class Course(Protocol):
    """The way of a run through its stages."""

    def next(self, done: Sequence[Stage], looks: Looks) -> Stage | None:
        """The stage after those that are done; None at the end of the run."""

    def due(self, stage: Stage, step: int) -> bool:
        """Whether all domains are evaluated after ``step`` (of the run), inside ``stage``."""

    def ends(self, stage: Stage, step: int, done: Sequence[Stage], looks: Looks) -> str | None:
        """Why ``stage`` ends after ``step`` already, in words; None to go on. Not asked at its last step."""

    def total(self, done: Sequence[Stage], stage: Stage | None) -> int:
        """Optimizer steps of the whole run as it looks now; ``stage`` is under way."""

    def closing(self, done: Sequence[Stage], looks: Looks) -> tuple[dict[str, Any], str | None]:
        """What is noted in ``run.json`` at the end, and a line for people."""


class Planned:
    """The stages of the configuration, each to its end."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)

    def next(self, done: Sequence[Stage], looks: Looks) -> Stage | None:
        """The stages in order."""
        return self.stages[len(done)] if len(done) < len(self.stages) else None

    def due(self, stage: Stage, step: int) -> bool:
        """Never: the configuration says when to evaluate."""
        return False

    def ends(self, stage: Stage, step: int, done: Sequence[Stage], looks: Looks) -> str | None:
        """Never early."""
        return None

    def total(self, done: Sequence[Stage], stage: Stage | None) -> int:
        """What the configuration says."""
        return self.stages[-1].last_step

    def closing(self, done: Sequence[Stage], looks: Looks) -> tuple[dict[str, Any], str | None]:
        """Nothing."""
        return {}, None


def ended_at(stage: Stage, step: int) -> Stage:
    """``stage`` as it is when it ends after ``step`` of the run."""
    return replace(stage, last_step=step)
