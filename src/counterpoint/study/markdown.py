"""A study's tables as Markdown and as plain cells, the same words for page, file and terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from counterpoint.study.results import AVERAGE, Compared, RowResult, Score, StudyResult
from counterpoint.study.statistics import Spread

MARKS = {"better": "▲", "worse": "▼"}
_COMPARED = ("domain", "difference", "p", "p corrected", "p sign flip", "verdict")


@dataclass(frozen=True)
class Table:
    """A title, names of columns, and cells by row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables_of(result: StudyResult) -> list[Table]:
    """Scores; differences; forgetting and rigidity where a row has stages; cost."""
    tables = _scores(result), _differences(result), _differences_of(result), _stages(result), _costs(result)
    return [table for table in tables if table.rows]


def markdown(result: StudyResult) -> str:
    """``study.md``."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: StudyResult) -> Iterator[str]:
    yield f"# Study {result.name}"
    for table in tables_of(result):
        yield from ("", f"## {table.title}", "")
        yield f"| {' | '.join(table.columns)} |"
        yield f"|{'---|' * len(table.columns)}"
        for row in table.rows:
            yield f"| {' | '.join(_escaped(cell) for cell in row)} |"
    failures = [(row.name, failure) for row in result.rows for failure in row.failed]
    if failures:
        yield from ("", "## Failed runs", "")
        for name, failure in failures:
            yield f"* `{name}`, seed {failure.seed}: {_escaped(failure.reason)}"
    yield from ("", "## How to read this", "")
    for note in result.notes:
        yield f"* {note}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _scores(result: StudyResult) -> Table:
    rows = []
    for row in result.rows:
        marks = row.difference or {}
        cells = [_score(row.scores.get(name), marks.get(name)) for name in result.domains]
        rows.append((row.name, *cells, _score(row.average, marks.get(AVERAGE)), _seeds(result, row)))
    title = f"Held-out reward, mean [95 % interval]; ▲ better, ▼ worse than {result.reference}"
    return Table(title, ("row", *result.domains, AVERAGE, "seeds"), tuple(rows))


def _seeds(result: StudyResult, row: RowResult) -> str:
    if row.kind == "base":
        return "once" if row.scores else "-"
    failed = f", {len(row.failed)} failed" if row.failed else ""
    return f"{len(row.seeds_done)}{failed}"


def _score(score: Score | None, compared: Compared | None) -> str:
    if score is None:
        return "-"
    mark = MARKS.get(compared.verdict, "") if compared else ""
    return f"{score.mean:.3f}{_interval(score.low, score.high)}{' ' + mark if mark else ''}"


def _interval(low: float, high: float, form: str = ".3f") -> str:
    return "" if math.isnan(low) or math.isnan(high) else f" [{low:{form}}, {high:{form}}]"


def _differences(result: StudyResult) -> Table:
    rows = [(row.name, *cells) for row in result.rows for cells in _compared(row.difference)]
    return Table(f"Difference from {result.reference}, paired by seed", ("row", *_COMPARED), tuple(rows))


def _differences_of(result: StudyResult) -> Table:
    """What merging, a refresh or a rollback changed: a row beside the one it is made of."""
    rows = [(f"{row.name} - {row.of}", *cells) for row in result.rows for cells in _compared(row.difference_of)]
    return Table("Difference from the row it is made of, paired by seed", ("rows", *_COMPARED), tuple(rows))


def _compared(differences: Mapping[str, Compared] | None) -> Iterator[tuple[str, ...]]:
    for key, d in (differences or {}).items():
        change = f"{d.mean:+.3f}{_interval(d.low, d.high, '+.3f')}"
        yield key, change, *(f"{p:.3g}" for p in (d.p, d.p_corrected, d.p_sign_flip)), d.verdict


def _stages(result: StudyResult) -> Table:
    rows = []
    for row in result.rows:
        for name in result.domains:
            lost, short = (row.forgetting or {}).get(name), (row.rigidity or {}).get(name)
            if lost is not None or short is not None:
                rows.append((row.name, name, _spread(lost), _spread(short)))
    title = "Stages: forgetting (after its own stage - at the end) and rigidity (its expert - after its own stage)"
    return Table(title, ("row", "domain", "forgetting", "rigidity"), tuple(rows))


def _spread(value: Spread | None) -> str:
    return "-" if value is None else f"{value.mean:+.3f}{_interval(value.low, value.high, '+.3f')}"


def _costs(result: StudyResult) -> Table:
    rows = [
        (row.name, f"{row.cost.steps:.0f}", f"{row.cost.tokens:,.0f}", f"{row.cost.seconds:,.0f}")
        for row in result.rows
        if row.cost is not None
    ]
    columns = ("row", "steps", "tokens", "seconds")
    return Table("Cost of one seed, with all that the model is made of", columns, tuple(rows))


def plain_rows(table: Table) -> Sequence[Sequence[str]]:
    """The cells of ``table`` with a name that repeats shown once."""
    shown, last = [], None
    for row in table.rows:
        repeats = row[0] == last
        shown.append(("" if repeats else row[0], *row[1:]))
        last = row[0]
    return shown
