"""What is asked of a recovery and what it finds. Every estimate has a 95 % interval over prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from counterpoint.recovery.refreshing.results import RefreshOptions
from counterpoint.recovery.rolling_back.options import RollbackOptions
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class RecoverOptions:
    """The settings of both attempts; ``both`` refreshes even where the rollback was enough."""

    rollback: RollbackOptions = field(default_factory=RollbackOptions)
    refresh: RefreshOptions = field(default_factory=RefreshOptions)
    both: bool = False


@dataclass(frozen=True)
class Fallen:
    """A domain that fell after its own stage, which ended at ``from_step``; ``to_step`` is the end of the run.

    ``change`` is paired by prompt, its interval simultaneous over all ``comparisons`` that were made; ``since`` names
    the domains trained in between. ``checkpoint`` is the one right after its stage, null where it was not kept.
    """

    domain: str
    from_step: int
    to_step: int
    since: tuple[str, ...]
    former: Estimate
    now: Estimate
    change: Estimate
    comparisons: int
    checkpoint: str | None


@dataclass(frozen=True)
class Attempt:
    """One rollback or refresh of ``domain`` from the checkpoint ``start``.

    ``scores`` are those on the held-out rows afterwards, ``changes`` against ``start``, paired by prompt. ``back`` says
    whether the domain is within the interval of its former score again, ``harmed`` which other domains fell beyond
    their interval, ``nothing`` whether the domain had nothing to recover (any more). ``file`` has everything else. What
    gave no checkpoint has no scores.
    """

    kind: str
    domain: str
    start: str
    folder: str
    file: str
    checkpoint: str | None
    scores: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]
    back: bool
    harmed: tuple[str, ...]
    nothing: bool
    seconds: float
    verdict: str

    @property
    def helped(self) -> bool:
        """Whether the domain rose beyond its interval, or rose and is back, and no other domain was harmed."""
        if self.checkpoint is None or self.harmed:
            return False
        change = self.changes[self.domain]
        return change.low > 0 or (self.back and change.value > 0)

    @property
    def average(self) -> float:
        """Mean over all domains of the scores afterwards."""
        return sum(score.value for score in self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Recover:
    """A recovery of ``run``: what fell, the plan in words, what was tried, and the checkpoint that was left.

    ``chosen`` is the kind of the attempt that gave ``checkpoint``, ``none`` where none helped. ``sentences`` say what
    came of it; ``finished`` is false in a file that was written on the way or for a plan alone.
    """

    run: str
    options: RecoverOptions
    fallen: tuple[Fallen, ...]
    plan: tuple[str, ...]
    attempts: tuple[Attempt, ...] = ()
    chosen: str = "none"
    checkpoint: str | None = None
    sentences: tuple[str, ...] = ()
    finished: bool = False
    seconds: float = 0.0
