"""The stages of a run: one with all domains, or one after another for ``sequential``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.config import Config
from counterpoint.errors import ConfigError


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

    @property
    def num_steps(self) -> int:
        """Optimizer steps of this stage, earlier parts of it included."""
        return self.taken + self.last_step - self.first_step

    @property
    def offset(self) -> int:
        """What a step counted within the stage must be raised by to be counted over the run."""
        return self.first_step - self.taken

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


def plan_stages(config: Config, max_steps: int) -> list[Stage]:
    """The stages of ``config``; ``max_steps`` is the budget of the whole run, the same for every strategy.

    A sequential run divides it evenly over its stages, earlier stages taking the remainder, unless
    ``strategy.steps`` gives every stage its own number.

    Raises:
        ConfigError: fewer steps than stages.
    """
    if not config.strategy.sequential:
        return [Stage(0, tuple(config.domains), 0, max_steps)]
    order: Sequence[str] = config.strategy.order or list(config.domains)
    if config.strategy.steps is not None:
        lengths = [config.strategy.steps] * len(order)
    else:
        if max_steps < len(order):
            raise ConfigError(
                f"training.max_steps: {max_steps} steps cannot be divided over {len(order)} stages. Use at least "
                f"{len(order)}, or set strategy.steps."
            )
        lengths = [max_steps // len(order) + (i < max_steps % len(order)) for i in range(len(order))]
    stages, first = [], 0
    for i, (domain, length) in enumerate(zip(order, lengths, strict=True)):
        stages.append(Stage(i, (domain,), first, first + length))
        first += length
    return stages
