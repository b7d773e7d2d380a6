"""What a study found: scores over seeds, planned contrasts with verdicts, exploratory differences, and what it cost."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from counterpoint.disk import write_text
from counterpoint.results import Result
from counterpoint.stats import Estimate
from counterpoint.study.schema import AVERAGE, STARVED, WORST
from counterpoint.study.statistics import POWER, Verdict
from counterpoint.tables import Cell, Table

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Cost:
    """What a model took: optimizer steps, tokens seen (prompts and completions), seconds of making it.

    Seconds of a training run are those of its steps; evaluations and start-up, the same for all, are left out. Those of
    a merge or a rollback are all but the evaluation of what they made.
    """

    steps: float
    tokens: float
    seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.steps + other.steps, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class Score:
    """A mean over seeds with its 95 % interval (NaN where the seeds give none), and the value of each seed.

    A row that is one model for all seeds, the base for example, is evaluated once: its interval is over prompts.
    """

    mean: Estimate
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Planned:
    """A planned contrast: ``row`` minus the reference in ``measure``, paired by seed.

    ``change`` is None while fewer than two seeds of both are done. Its 95 % interval is its own; ``p_corrected`` holds
    for all planned contrasts together (Holm), and decides. ``spread`` is the standard deviation of the differences over
    seeds; ``power`` the chance of seeing a true difference of ``worth`` with these seeds and this spread, and
    ``seeds_needed`` the seeds for a chance of 0.8 (None: more than a thousand, or not known yet).
    """

    row: str
    measure: str
    change: Estimate | None = None
    p: float | None = None
    p_corrected: float | None = None
    verdict: Verdict = "not decided"
    spread: float | None = None
    power: float | None = None
    seeds_needed: int | None = None

    def sentence(self, reference: str, worth: float) -> str:
        """``mgs - mixed, average: +0.012 [-0.010, +0.034], not decided; 11 seeds would see 0.02.``"""
        named = f"{self.row} - {reference}, {self.measure}"
        if self.change is None:
            return f"{named}: not compared yet, two seeds of both are needed."
        limits = f" [{self.change.low:+.3f}, {self.change.high:+.3f}]" if math.isfinite(self.change.low) else ""
        found = f"{named}: {self.change.value:+.3f}{limits}, {self.verdict}"
        if self.verdict != "not decided" or not self.spread or self.measure == STARVED:
            return f"{found}."
        if self.power is not None and self.power >= POWER:
            return f"{found}, though a difference of {worth:g} is seen with a chance of {self.power:.2f}."
        needed = "more than 1,000" if self.seeds_needed is None else f"{self.seeds_needed}"
        return f"{found}; {needed} seeds would see {worth:g}."


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    seed: int | None
    reason: str


@dataclass(frozen=True)
class Worst:
    """The lowest domain of each seed, and its exploratory difference from the reference.

    ``starved`` counts the seeds in which it ended below the study's ``starved``, ``p_starved`` is McNemar's exact test
    against the reference, not corrected; None where the study counts none.
    """

    score: Score
    difference: Estimate | None = None
    starved: int | None = None
    p_starved: float | None = None


@dataclass(frozen=True)
class RowResult:
    """One row of the table. ``scores`` is empty and ``cost`` None where nothing is done yet.

    ``scores`` holds the domains and their ``average``; so does ``difference`` from the reference row, and
    ``difference_of`` from the row ``of`` which this one is made of. These differences are exploratory: paired by seed,
    each with its own 95 % interval. ``seeds_planned`` counts the row's own seeds; 0 where it is one model for all.
    """

    name: str
    kind: str
    description: str
    seeds_done: tuple[int, ...]
    failed: tuple[Failure, ...]
    seeds_planned: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    difference: dict[str, Estimate] | None = None
    worst: Worst | None = None
    of: str | None = None
    difference_of: dict[str, Estimate] | None = None
    forgetting: dict[str, Estimate] | None = None
    rigidity: dict[str, Estimate] | None = None
    cost: Cost | None = None


@dataclass(frozen=True)
class StudyResult(Result):
    """A whole study.

    ``spreads`` has, for ``average``, ``worst`` and every domain, the median over the compared rows of the standard
    deviation over seeds of the difference from the reference; nothing while no row has two seeds. ``starved`` is the
    score below which a seed's lowest domain counts as starved; None where none is counted. ``verdicts`` has one
    sentence per planned contrast.
    """

    kind: ClassVar[str] = "study"

    name: str
    reference: str
    seeds: tuple[int, ...]
    domains: tuple[str, ...]
    worth: float
    verdicts: tuple[str, ...]
    contrasts: tuple[Planned, ...]
    rows: tuple[RowResult, ...]
    notes: tuple[str, ...]
    spreads: dict[str, float]
    settings: dict[str, Any]
    environment: dict[str, Any]
    starved: float | None = None

    def tables(self) -> list[Table]:
        """Scores; the lowest domain; planned contrasts; exploratory differences; forgetting and rigidity; cost."""
        tables = [
            self._scores(),
            self._worst(),
            self._planned(),
            self._differences(),
            self._differences_of(),
            self._stages(),
            self._costs(),
        ]
        return [table for table in tables if table.rows]

    def sentences(self) -> Sequence[str]:
        """The verdicts, then what a reader must know beside the numbers."""
        return [*self.verdicts, *self.notes, *self._failures()]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """The average of every row, which fits a terminal, and the sentences; ``tables`` has the domains too."""
        from rich.text import Text

        yield self._overview()
        yield from (Text(sentence) for sentence in self.sentences())

    def _overview(self) -> Table:
        difference = f"exploratory: - {self.reference}"
        rows = [
            (
                row.name,
                row.scores[AVERAGE].mean if row.scores else None,
                (row.difference or {}).get(AVERAGE),
                _seeds(row),
            )
            for row in self.rows
        ]
        title = f"{self.name}: mean held-out score over the domains [95 % interval]"
        columns = ("row", AVERAGE, difference, "seeds")
        return Table(title, columns, tuple(rows), {AVERAGE: ".3f", difference: "+.3f"})

    def seed_table(self) -> Table:
        """One line per row, seed and domain (or their average): the scores that everything else is made of."""
        rows: list[tuple[Cell, ...]] = [
            (row.name, row.kind, seed, measure, value)
            for row in self.rows
            for measure, score in row.scores.items()
            for seed, value in zip(row.seeds_done or (None,), score.by_seed, strict=True)
        ]
        return Table("Scores by seed", ("row", "kind", "seed", "measure", "score"), tuple(rows))

    def to_frame(self) -> "pandas.DataFrame":
        """The scores by row, seed and measure, one line each, as a pandas frame."""
        return self.seed_table().to_frame()

    def to_markdown(self) -> str:
        """``study.md``: verdicts, tables, notes."""
        texts = [f"# Study {self.name}", *_listed(self.verdicts), *(table.to_markdown() for table in self.tables())]
        failures = list(self._failures())
        if failures:
            texts += ["## Failed runs", *_listed(failures)]
        return "\n\n".join([*texts, "## How to read this", *_listed(self.notes)]) + "\n"

    def write_all(self, folder: Path) -> None:
        """``study.json``, ``study.md``, ``study.csv`` (scores by seed) and ``study.tex`` in ``folder``."""
        self.write(folder / "study.json")
        write_text(folder / "study.md", self.to_markdown())
        write_text(folder / "study.csv", self.seed_table().to_csv())
        write_text(folder / "study.tex", "\n\n".join(table.to_latex() for table in self.tables()) + "\n")

    def _scores(self) -> Table:
        measures = (*self.domains, AVERAGE)
        rows = [
            (row.name, *(row.scores[m].mean if m in row.scores else None for m in measures), _seeds(row))
            for row in self.rows
        ]
        title = "Held-out score, mean over seeds [95 % interval]"
        return Table(title, ("row", *measures, "seeds"), tuple(rows), dict.fromkeys(measures, ".3f"))

    def _worst(self) -> Table:
        difference = f"exploratory: - {self.reference}"
        rows: list[tuple[Cell, ...]] = [
            (row.name, row.worst.score.mean, row.worst.difference, _starved(row), row.worst.p_starved)
            for row in self.rows
            if row.worst is not None
        ]
        columns = ["row", WORST, difference, "starved seeds", "p of these, not corrected"]
        if self.starved is None:
            rows, columns = [row[:3] for row in rows], columns[:3]
        formats = {WORST: ".3f", difference: "+.3f", "p of these, not corrected": ".2g"}
        return Table("The lowest domain of each seed [95 % interval]", tuple(columns), tuple(rows), formats)

    def _planned(self) -> Table:
        rows = [
            (f"{c.row} - {self.reference}", c.measure, c.change, c.p_corrected, c.verdict, c.power, c.seeds_needed)
            for c in self.contrasts
        ]
        power, seeds = f"power for {self.worth:g}", f"seeds for {self.worth:g}"
        return Table(
            "Planned contrasts: these decide",
            ("contrast", "measure", "difference [95 %]", "p (Holm)", "verdict", power, seeds),
            tuple(rows),
            {"difference [95 %]": "+.3f", power: ".2f"},
            f"Power and seeds (for a power of {POWER:g}) at the spread that was measured over seeds.",
        )

    def _differences(self) -> Table:
        title = f"Exploratory: difference from {self.reference}, paired by seed [95 % interval, not corrected]"
        return self._matrix(title, [(row.name, row.difference) for row in self.rows])

    def _differences_of(self) -> Table:
        """What merging, a refresh or a rollback changed: a row and the one it is made of."""
        title = "Exploratory: difference from the row it is made of, paired by seed [95 % interval, not corrected]"
        return self._matrix(title, [(f"{row.name} - {row.of}", row.difference_of) for row in self.rows])

    def _matrix(self, title: str, named: Sequence[tuple[str, Mapping[str, Estimate] | None]]) -> Table:
        measures = (*self.domains, AVERAGE)
        rows = [(name, *(found.get(m) for m in measures)) for name, found in named if found]
        return Table(title, ("row", *measures), tuple(rows), dict.fromkeys(measures, "+.3f"))

    def _stages(self) -> Table:
        rows = []
        for row in self.rows:
            for name in self.domains:
                lost, short = (row.forgetting or {}).get(name), (row.rigidity or {}).get(name)
                if lost is not None or short is not None:
                    rows.append((row.name, name, lost, short))
        title = "Stages: forgetting (after its own stage - at the end) and rigidity (its expert - after its own stage)"
        columns = ("row", "domain", "forgetting", "rigidity")
        return Table(title, columns, tuple(rows), {"forgetting": "+.3f", "rigidity": "+.3f"})

    def _costs(self) -> Table:
        rows = [
            (row.name, row.cost.steps, row.cost.tokens, row.cost.seconds) for row in self.rows if row.cost is not None
        ]
        columns = ("row", "steps", "tokens", "seconds")
        title = "Cost of one seed, with all that the model is made of"
        return Table(title, columns, tuple(rows), dict.fromkeys(columns[1:], ",.0f"))

    def _failures(self) -> Iterator[str]:
        for row in self.rows:
            for failure in row.failed:
                seed = "" if failure.seed is None else f", seed {failure.seed}"
                yield f"{row.name}{seed} failed: {failure.reason}"


def _starved(row: RowResult) -> str | None:
    if row.worst is None or row.worst.starved is None:
        return None
    return f"{row.worst.starved} of {len(row.worst.score.by_seed)}"


def _seeds(row: RowResult) -> str:
    failed = f", {len(row.failed)} failed" if row.failed else ""
    if not row.seeds_planned:
        return ("once" if row.scores else "-") + failed
    open_ = f" of {row.seeds_planned}" if len(row.seeds_done) < row.seeds_planned else ""
    return f"{len(row.seeds_done)}{open_}{failed}"


def _listed(lines: Sequence[str]) -> list[str]:
    escaped = (line.replace("\n", " ").replace("<", "&lt;") for line in lines)
    return ["\n".join(f"* {line}" for line in escaped)] if lines else []
