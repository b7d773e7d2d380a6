"""A stage: a stretch of a run with one set of domains, as ``run.json`` keeps it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from counterpoint.stats import Scores

Looks = Mapping[int, Mapping[str, Scores]]
"""The scores of every held-out prompt by the run's step and domain; the same prompts in the same order each time."""


@dataclass(frozen=True)
class Stage:
    """Training on ``domains`` from ``first_step`` (exclusive) to ``last_step`` (inclusive), counted over the run.

    A stage that is interrupted by a refresh leaves two: the second one has ``taken`` steps behind it, and the
    optimizer, the schedule and the order of prompts go on after those.
    """

    index: int
    domains: tuple[str, ...]
    first_step: int
    last_step: int
    kind: Literal["train", "refresh"] = "train"
    taken: int = 0
    look_every: int | None = field(default=None, compare=False)
    """Steps of the stage between evaluations that its policy asks for, beside those of the configuration."""
    stop_when: Callable[[int, Looks], str | None] | None = field(default=None, compare=False, repr=False)
    """Asked with a step and all scores after such an evaluation: why the stage ends here, or None to go on."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps of this stage, earlier parts of it included."""
        return self.taken + self.last_step - self.first_step

    @property
    def offset(self) -> int:
        """Add this to a trainer's ``global_step`` to get the step of the whole run."""
        return self.first_step - self.taken

    def looks_at(self, step: int) -> bool:
        """Whether the policy evaluates after ``step`` of the run."""
        if self.look_every is None or step <= self.first_step:
            return False
        return (step - self.offset) % self.look_every == 0

    def why_ended(self, step: int, looks: Looks) -> str | None:
        """Why the stage ends after ``step`` already, by its policy; None where it does not, or ends there anyway.

        The evaluation before the run's first step is asked too: it may show that there is nothing to do.
        """
        first = step == self.first_step == 0
        if self.stop_when is None or step not in looks or step >= self.last_step or not (first or self.looks_at(step)):
            return None
        return self.stop_when(step, looks)

    def ended_at(self, step: int) -> "Stage":
        """The stage as it is when it ends after ``step`` of the run."""
        return replace(self, last_step=step)

    def to_json(self) -> dict[str, Any]:
        """The entry of ``run.json``, without its checkpoint."""
        return {
            "kind": self.kind,
            "domains": list(self.domains),
            "first_step": self.first_step,
            "last_step": self.last_step,
            "taken": self.taken,
        }

    @classmethod
    def from_json(cls, index: int, entry: Mapping[str, Any]) -> "Stage":
        """The stage of an entry of ``run.json``; those written before refreshes were known are of kind ``train``."""
        return cls(
            index,
            tuple(entry["domains"]),
            entry["first_step"],
            entry["last_step"],
            entry.get("kind", "train"),
            entry.get("taken", 0),
        )
