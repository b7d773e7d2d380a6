"""What a rollback is asked for and what it finds, in tables and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar

from counterpoint.errors import CounterpointError, nearest
from counterpoint.recovery import _words
from counterpoint.results import Result
from counterpoint.stats import MARGIN, Estimate, Harm, Standing
from counterpoint.tables import Table

SCORES = ("damage", "magnitude")
RESULT, MODEL = "rollback.json", "checkpoint"
"""The result and the model in the folder of a rollback."""


@dataclass(frozen=True)
class RollbackOptions:
    """What is tried, and on how many prompts.

    ``score`` ranks weights: ``damage`` by F d^2, with the domain's Fisher diagonal F and the edit d, or ``magnitude``
    by |d|, which needs no second copy of the model. ``budgets`` are shares of the model's weights; None stands for
    0.3, 1, 3 and 10 %, of which those beyond the edit are left out. ``scales`` say how far a mask is moved back, 1
    being all the way, ``pull_backs`` how far all weights are. ``draws`` is the number of random masks of each kind.
    ``prompts`` training prompts of the domain, with ``samples`` completions each, rank the weights, and as many others
    of every domain choose. A score up to ``margin`` below another counts as the same.
    """

    score: str = "damage"
    budgets: tuple[float, ...] | None = None
    scales: tuple[float, ...] = (0.5, 1.0)
    pull_backs: tuple[float, ...] = (0.1, 0.3, 0.5)
    draws: int = 3
    prompts: int = 64
    samples: int = 4
    margin: float = MARGIN
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise CounterpointError(f"score={self.score!r}: there is no such choice; {nearest(self.score, SCORES)}")
        for name, least in (("draws", 1), ("prompts", 2), ("samples", 1), ("margin", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise CounterpointError(f"{name}={value!r} is too few: it must be at least {least}.")
        for name, example in (("budgets", "(0.01, 0.1)"), ("scales", "(0.5, 1)"), ("pull_backs", "(0.3,)")):
            for value in getattr(self, name) or ():
                if not 0 < value <= 1:
                    raise CounterpointError(
                        f"{name}: each must be above 0 and at most 1; found {value:g}. Write for example "
                        f"{name}={example}."
                    )
        if self.budgets == () or not self.scales:
            raise CounterpointError("budgets and scales need a number each, e.g. budgets=(0.01, 0.1), scales=(0.5, 1).")


@dataclass(frozen=True)
class Split:
    """Prompts per domain (the smallest number, where they differ), and completions of each."""

    prompts: int
    samples: int


@dataclass(frozen=True)
class Trial:
    """One way to move weights back, tried on training prompts: mean rewards by domain.

    ``kind`` is ``mask``, ``pull-back`` (all weights) or ``nothing``. ``budget`` is the share of the model's weights.
    """

    kind: str
    budget: float
    scale: float
    scores: Mapping[str, float]

    @property
    def average(self) -> float:
        """Mean over domains: what chooses."""
        return fmean(self.scores.values())


@dataclass(frozen=True)
class Measured:
    """One model on the held-out prompts, or the mean over ``draws`` random ones.

    ``name`` is ``before``, ``after``, ``mask``, ``matched`` (random, of the mask's tensors and sizes), ``uniform``
    (random, as many weights) or ``pull-back``. ``moved`` is the share of |d|^2 taken back. ``changes`` are against
    ``after``, paired by prompt. ``restored`` is the share of the domain's loss that came back, 1 being all.
    """

    name: str
    draws: int
    moved: float | None
    scores: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]
    restored: Estimate | None


@dataclass(frozen=True)
class Judged:
    """What was found of ``mask`` or ``pull-back``: the domain's standing, what happened to the others, and the reasons
    that speak against writing it, none where it helped."""

    name: str
    trial: Trial
    standing: Standing
    others: Mapping[str, Harm]
    against: tuple[str, ...]


@dataclass(frozen=True)
class Rollback(Result):
    """A rollback from ``after`` towards ``before``, for ``domain``.

    ``num_changed`` of ``num_weights`` weights were changed by the edit. ``damage`` is the domain's change from before
    to after on the held-out prompts. ``ranking_adds`` and ``placing_adds`` are differences of rewards by domain: mask
    minus matched random masks, and these minus uniform ones. ``written`` is ``mask``, ``pull-back`` or ``none``, and
    ``checkpoint`` the folder of the model. Every interval is 95 % over prompts, that of a standing for all candidates.
    """

    kind: ClassVar[str] = "rollback"
    before: str
    after: str
    domain: str
    options: RollbackOptions
    num_weights: int
    num_changed: int
    damage: Estimate
    test: Split
    search: Split | None = None
    tried: tuple[Trial, ...] = ()
    measured: tuple[Measured, ...] = ()
    judged: tuple[Judged, ...] = ()
    ranking_adds: Mapping[str, Estimate] = field(default_factory=dict)
    placing_adds: Mapping[str, Estimate] = field(default_factory=dict)
    written: str = "none"
    checkpoint: str | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def nothing(self) -> bool:
        """Whether the domain did not fall, so that nothing was tried."""
        return not self.tried

    def of(self, name: str) -> Measured:
        """What was measured of one model."""
        return next(row for row in self.measured if row.name == name)

    def tables(self) -> list[Table]:
        """The held-out prompts, then the search."""
        columns = ("model", "|d|^2 moved", "loss restored", *self.of("after").scores)
        forms = {"|d|^2 moved": ".1%", "loss restored": ".0%"} | dict.fromkeys(self.of("after").scores, "+.3f")
        rows = [
            (_NAMES[row.name].format(row.draws), row.moved, row.restored, *self._cells(row)) for row in self.measured
        ]
        title = f"Held-out prompts, {self.test.prompts} x {self.test.samples}: change of reward against after [95 %]"
        tables = [Table(title, columns, tuple(rows), forms, note="Of after itself: mean reward.")]
        return tables + ([self._search_table()] if self.tried and self.search else [])

    def _cells(self, row: Measured) -> list[str | Estimate]:
        if row.name == "after":
            return [_words.score(value) for value in row.scores.values()]
        return list(row.changes.values())

    def _search_table(self) -> Table:
        assert self.search is not None
        chosen = [one.trial for one in self.judged]
        rows = [
            (
                one.kind if one not in chosen else f"{one.kind} (chosen)",
                None if one.kind == "nothing" else one.budget,
                None if one.kind == "nothing" else one.scale,
                one.scores[self.domain],
                one.average,
            )
            for one in self.tried
        ]
        title = f"Training prompts, {self.search.prompts} x {self.search.samples}: mean reward; the best are chosen"
        forms = {"of all weights": ".1%", "moved back": ".0%", self.domain: ".3f", "average": ".3f"}
        return Table(title, ("tried", "of all weights", "moved back", self.domain, "average"), tuple(rows), forms)

    def sentences(self) -> Sequence[str]:
        """What was lost, what came back, what the ranking adds, what it cost, and what was written."""
        before, after = (_words.score(self.of(name).scores[self.domain]) for name in ("before", "after"))
        if self.nothing:
            return (
                f"Nothing to recover: {self.domain} scores {before} before and {after} after the edit, a change of "
                f"{_words.change(self.damage)}, which is {'a rise' if self.damage.low > 0 else 'within noise'}.",
            )
        said = [f"{self.domain} fell from {before} to {after}: {_words.change(self.damage)}."]
        for one in self.judged:
            said += self._about(one)
        if not self.judged:
            said.append("On training prompts nothing that was tried does better than leaving the weights alone.")
        return (*said, self._written(), *self.notes)

    def _about(self, one: Judged) -> list[str]:
        row, margin = self.of(one.name), self.options.margin
        what = f"{one.trial.budget:.2%} of the weights" if one.name == "mask" else "all weights"
        moved = f"Moving {what} back {_way(one.trial.scale)} ({row.moved:.1%} of |d|^2): "
        said = [f"{moved}{_words.gained(self.domain, one.standing, margin)}."]
        said.append(f"It restores {_share(row.restored)} of the loss.")
        if one.name == "mask":
            said.append(self._controls())
        return [*said, *filter(None, [_words.others(row.changes, one.others, margin)])]

    def _controls(self) -> str:
        ranking, placing = (_added(adds[self.domain]) for adds in (self.ranking_adds, self.placing_adds))
        matched, uniform = self.of("matched"), self.of("uniform")
        return (
            f"Random weights of the same tensors and sizes ({matched.moved:.1%} of |d|^2) restore "
            f"{_share(matched.restored)}: the ranking of single weights adds {ranking}. Uniformly random weights "
            f"({uniform.moved:.1%}) restore {_share(uniform.restored)}: choosing tensors and sizes adds {placing}."
        )

    def _written(self) -> str:
        reasons = "; ".join(f"the {one.name} {reason}" for one in self.judged for reason in one.against)
        because = f": {reasons}" if reasons else ""
        if self.written == "none":
            return f"No checkpoint was written{because}."
        where = "" if self.checkpoint is None else f" It is {self.checkpoint}."
        return f"The {self.written} is the best that helps{f' ({reasons})' if reasons else ''}.{where}"


_NAMES = {
    "before": "before",
    "after": "after",
    "mask": "mask, ranked",
    "matched": "random, same tensors and sizes (mean of {})",
    "uniform": "random, as many weights (mean of {})",
    "pull-back": "pull-back of all weights",
}


def _share(value: Estimate | None) -> str:
    if value is None:
        return "an unknown share"
    return f"{value.value:.0%}" + (f" [{value.low:.0%}, {value.high:.0%}]" if math.isfinite(value.high) else "")


def _way(scale: float) -> str:
    return "all the way" if scale == 1 else f"{scale:.0%} of the way"


def _added(value: Estimate) -> str:
    return _words.change(value) + (", within noise" if value.low <= 0 <= value.high else "")
