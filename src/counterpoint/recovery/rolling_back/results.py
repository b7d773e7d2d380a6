"""What a rollback finds. Every estimate has a 95 % interval over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

from counterpoint.recovery.rolling_back.options import RollbackOptions
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class Split:
    """Prompts per domain (the smallest number, where they differ), completions of each, and which rows."""

    prompts: int
    samples: int
    split: str


@dataclass(frozen=True)
class Trial:
    """One set of weights tried on the selection split.

    ``kind`` is ``rollback``, ``random`` (with its ``draw``), or ``after`` (nothing restored). ``budget`` is the share
    of the model's weights that was asked for, ``num_weights`` what it came to. ``scores`` are mean rewards,
    ``objective`` what is maximised.
    """

    kind: str
    draw: int | None
    budget: float
    scale: float
    num_weights: int
    scores: Mapping[str, float]
    objective: float


@dataclass(frozen=True)
class Chosen:
    """The budget and scale with the best objective."""

    budget: float
    scale: float
    num_weights: int


@dataclass(frozen=True)
class Reported:
    """One model on the test split: mean reward per domain, and its change against ``after``, paired by prompt."""

    name: str
    draw: int | None
    scores: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]


@dataclass(frozen=True)
class Rollback:
    """A rollback from ``after`` towards ``before``, for ``domain``.

    ``num_changed`` weights were changed by the edit, ``num_candidates`` of them have a score above 0 in the place that
    was asked for. ``damage`` is the domain's change from ``before`` to ``after`` on the test split. ``restored`` is the
    part of it that came back (1 is all), ``restored_random`` that by random weights, the mean over draws;
    ``beyond_random`` the difference of rewards per domain to the mean of the random draws, paired by prompt.
    ``checkpoint`` is the folder that was written. What was not reached is null or empty; ``stopped`` then says why.
    """

    before: str
    after: str
    domain: str
    other: str | None
    options: RollbackOptions
    checkpoint: str | None = None
    score: str = ""
    unit: str = ""
    where: str = ""
    num_weights: int = 0
    num_changed: int = 0
    num_candidates: int = 0
    selection: Split | None = None
    test: Split | None = None
    damage: Estimate | None = None
    tried: tuple[Trial, ...] = ()
    chosen: Chosen | None = None
    reported: tuple[Reported, ...] = ()
    restored: Estimate | None = None
    restored_random: Estimate | None = None
    beyond_random: Mapping[str, Estimate] | None = None
    verdict: str = ""
    notes: tuple[str, ...] = ()
    stopped: str | None = None
    seconds: float = 0.0

    @property
    def helped(self) -> bool:
        """Whether the domain rose on the test split beyond its interval."""
        row = next((row for row in self.reported if row.name == "rollback"), None)
        return row is not None and row.changes[self.domain].low > 0
