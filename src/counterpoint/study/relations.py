"""What must hold between the rows of a study, and between a row and the base configuration."""

from collections import Counter
from collections.abc import Iterator, Mapping

from counterpoint.config import Config
from counterpoint.config.variables import Key
from counterpoint.errors import nearest
from counterpoint.study.row_configs import RowConfigs
from counterpoint.study.schema import ExpertsRow, MergeRow, RefreshRow, RollbackRow, Row, StudyConfig, TrainRow

Finding = tuple[Key, str]


def row_findings(
    study: StudyConfig, rows: Mapping[str, Row], configs: RowConfigs, base: Config | None
) -> Iterator[Finding]:
    """Path in the file and message of everything wrong between rows."""
    if study.reference not in rows:
        yield ("reference",), f"unknown row {study.reference!r}: {nearest(study.reference, rows)}"
    yield from _repeated(study.seeds, ("seeds",))
    if base is None:
        return
    domains = list(base.domains)
    for name, row in rows.items():
        at: Key = ("rows", name)
        yield from _repeated(row.seeds or (), (*at, "seeds"))
        if isinstance(row, ExpertsRow):
            yield from _experts(at, row, base)
        elif isinstance(row, MergeRow):
            yield from _of(at, row, rows, ExpertsRow, study)
            if row.density is not None and row.method != "ties":
                yield (*at, "density"), f"belongs to the method 'ties', found {row.method!r}. Remove it."
        elif isinstance(row, RefreshRow | RollbackRow):
            yield from _of(at, row, rows, TrainRow, study)
            if row.domain not in domains:
                yield (*at, "domain"), f"unknown domain {row.domain!r}: {nearest(row.domain, domains)}"
            else:
                yield from _later_stage(at, row, configs)
    yield from _clashes(rows, domains)


def _repeated(seeds: tuple[int, ...], at: Key) -> Iterator[Finding]:
    if len(set(seeds)) < len(seeds):
        yield at, f"names a seed twice, found {list(seeds)}. Give each once."


def _experts(at: Key, row: ExpertsRow, base: Config) -> Iterator[Finding]:
    steps = base.training.get("max_steps")
    if row.steps is None and (not isinstance(steps, int) or steps < len(base.domains)):
        yield at, "needs training.max_steps in the base configuration to divide, or steps of its own. Give one of them."


def _of(
    at: Key, row: MergeRow | RefreshRow | RollbackRow, rows: Mapping[str, Row], kind: type[Row], study: StudyConfig
) -> Iterator[Finding]:
    fitting = [name for name, other in rows.items() if isinstance(other, kind)]
    what = kind.model_fields["kind"].default
    if row.of not in fitting:
        hint = nearest(row.of, fitting) if fitting else f"There is none in this study. Add a row of kind `{what}`."
        yield (*at, "of"), f"needs a row of kind `{what}`, found {row.of!r}: {hint}"
        return
    have = set(rows[row.of].seeds or study.seeds)
    missing = [seed for seed in row.seeds or study.seeds if seed not in have]
    if missing:
        listed = ", ".join(map(str, missing))
        yield (*at, "of"), f"{row.of!r} has no run of seed {listed}. Give it these seeds, or this row fewer."


def _later_stage(at: Key, row: RefreshRow | RollbackRow, configs: RowConfigs) -> Iterator[Finding]:
    """A rollback needs later stages to undo; a refresh needs to know what the domain scored when it was good."""
    config = configs.get((row.of, ""))
    if config is None:
        return
    order = config.strategy.order or list(config.domains)
    if not config.strategy.sequential:
        if isinstance(row, RefreshRow) and "former" in row.options:
            return
        found = config.strategy.label
        remedy = "" if isinstance(row, RollbackRow) else " Or give the score to reach: options: {former: 0.9}."
        yield (*at, "of"), f"needs a row whose strategy is sequential, found {found!r}.{remedy}"
    elif row.domain not in order[:-1]:
        yield (
            (*at, "domain"),
            f"no stage follows that of {row.domain!r}, so nothing has hurt it since. Give an earlier one.",
        )


def _clashes(rows: Mapping[str, Row], domains: list[str]) -> Iterator[Finding]:
    """Rows whose runs would have one folder: ``experts-math`` beside the expert of math in ``experts``."""
    folders: Counter[str] = Counter(list(rows))
    for name, row in rows.items():
        if isinstance(row, ExpertsRow):
            folders.update(f"{name}-{domain}" for domain in domains)
    for name in rows:
        if folders[name] > 1:
            yield ("rows", name), f"has the name of an expert's runs, {name!r}. Give it another one."
