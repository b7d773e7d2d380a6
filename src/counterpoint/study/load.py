"""From a study file to a checked ``Study``: every problem of the file and of every row's run is told at once."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from counterpoint.config import Config
from counterpoint.config.document import Document, Problem, dump_yaml
from counterpoint.config.load import TrainingCheck, plain_problems, read_document, validated
from counterpoint.config.variables import Filled, Key, put_back
from counterpoint.errors import ConfigError, listed, nearest
from counterpoint.inputs import expanded, kind_of
from counterpoint.study.configs import RowConfigs, build_configs, domains_of, of_row
from counterpoint.study.schema import (
    AVERAGE,
    KINDS,
    MAX_ROWS,
    STARVED,
    WORST,
    BaseRow,
    Contrast,
    ExpertsRow,
    GivenRow,
    MergeRow,
    RefreshRow,
    RollbackRow,
    Row,
    StudyConfig,
    TrainRow,
    expand_row,
)

MOST_UNASKED = 3
"""Rows up to which their averages are planned contrasts where the file names none."""
_MAX_ORDERED = 6  # 720 orders
Finding = tuple[Key, str]


@dataclass(frozen=True)
class Study:
    """A checked study.

    Attributes:
        config: the file.
        rows: name -> row, orders expanded.
        configs: the configuration of every run but for its seed, by row and, for experts, domain (``""`` elsewhere).
        base: the configuration that all rows start from.
        filled: what its file took from the environment.
    """

    config: StudyConfig
    rows: dict[str, Row]
    configs: RowConfigs
    base: Config
    filled: tuple[Filled, ...] = ()

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains of the base configuration, in the order of every table."""
        return tuple(self.base.domains)

    def seeds(self, row: str) -> tuple[int, ...]:
        """The seeds of one row."""
        own = self.rows[row].seeds
        return self.config.seeds if own is None else own

    @cached_property
    def compared(self) -> tuple[str, ...]:
        """The rows that are compared with the reference: all that have seeds."""
        return tuple(
            name for name, row in self.rows.items() if name != self.config.reference and not is_shown_only(row)
        )

    @cached_property
    def contrasts(self) -> tuple[Contrast, ...]:
        """The planned comparisons: those of the file, or of few rows the average of each."""
        if self.config.contrasts is not None:
            return tuple(self.config.contrasts)
        few = self.compared if len(self.compared) <= MOST_UNASKED else ()
        return tuple(Contrast(row=name) for name in few)

    def to_yaml(self) -> str:
        """The study with its rows and its base configuration in full, ``${VAR}`` for what came from the environment."""
        rows = {name: row.model_dump(mode="json") for name, row in self.rows.items()}
        contrasts = [contrast.model_dump() for contrast in self.contrasts]
        full = {"config": self.base.written(), "contrasts": contrasts, "rows": rows}
        data = self.config.model_dump(mode="json") | full
        return dump_yaml(put_back(data, [one for name in rows for one in of_row(self.filled, name)]))


def is_shown_only(row: Row) -> bool:
    """Whether a row is one model for all seeds, so that there is nothing to pair by seed."""
    return isinstance(row, BaseRow) or (isinstance(row, GivenRow) and isinstance(row.path, str))


def load_study(path: str | Path, check_training: TrainingCheck | None = None) -> Study:
    """The study in the YAML file ``path``.

    Raises:
        ConfigError: one line per problem of the file, of its base configuration and of every row's run, each with
            where it stands, what was found and what to do.
    """
    path = Path(path)
    document = _read(path, "study")
    config, problems = validated(StudyConfig, document, ())
    _raise(problems)
    assert isinstance(config, StudyConfig)
    rows, row_problems = _rows(document, config)
    base_document, base_path = _base(document, config, path)
    domains = domains_of(base_document.data)
    if reason := _too_many(rows, domains):
        _raise([*row_problems, document.problem(("rows",), reason)])
    rows = {name: _located(row, path.parent) for name, row in _expanded(rows, domains).items()}
    configs, base, problems = build_configs(rows, base_document, base_path, document, check_training)
    _raise([*row_problems, *problems] if base is None else [])
    assert base is not None
    study = Study(config, rows, configs, base, tuple(document.filled))
    if not row_problems:
        problems += [document.problem(at, message) for at, message in _findings(study)]
    _raise([*row_problems, *problems])
    return study


def _read(path: Path, what: str) -> Document:
    document = read_document(path, f"{what} file")
    _raise([*document.problems, *plain_problems(document)])
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        _raise([Problem(str(path), (), f"a {what} is a mapping, found {found}.")])
    return document


def _rows(document: Document, config: StudyConfig) -> tuple[dict[str, Row], list[Problem]]:
    rows: dict[str, Row] = {}
    problems: list[Problem] = []
    for name, written in config.rows.items():
        data = {} if written is None else expand_row(written)
        at: Key = ("rows", name)
        kind = data.get("kind", "train") if isinstance(data, dict) else "train"
        if not isinstance(data, dict):
            message = f"expected a strategy's name or a mapping, found {data!r}."
            problems.append(document.problem(at, message))
        elif not isinstance(kind, str) or kind not in KINDS:
            message = f"unknown kind {kind!r}: {nearest(str(kind), KINDS)}"
            problems.append(document.problem((*at, "kind"), message))
        else:
            row, found = validated(KINDS[kind], document, at, data)
            problems += found
            if isinstance(row, Row):
                rows[name] = row
    return rows, problems


def _base(document: Document, config: StudyConfig, path: Path) -> tuple[Document, Path]:
    """The base configuration as data with its places, and the file that its relative paths lie beside."""
    if isinstance(config.config, dict):
        places = {key[1:]: place for key, place in document.places.items() if key[:1] == ("config",)}
        filled = [replace(one, path=one.path[1:]) for one in document.filled if one.path[0] == "config"]
        return Document(config.config, document.name, places, filled=filled), path
    base = Path(_beside(config.config, path.parent))
    return _read(base, "configuration"), base


def _located(row: Row, folder: Path) -> Row:
    if not isinstance(row, GivenRow):
        return row
    paths = row.path if isinstance(row.path, list) else [row.path]
    found = [_beside(path, folder) for path in paths]
    return row.model_copy(update={"path": found if isinstance(row.path, list) else found[0]})


def _beside(path: str, folder: Path) -> str:
    """``path`` beside the study file where there is something, else as it is."""
    wanted = expanded(path)
    return str(folder / wanted) if kind_of(folder / wanted) else str(wanted)


# Rows that stand for several


def _too_many(rows: Mapping[str, Row], domains: Sequence[str]) -> str | None:
    """Why the rows cannot be expanded: there would be too many, counted before any is made."""
    if any(isinstance(row, TrainRow) and row.orders == "all" for row in rows.values()) and len(domains) > _MAX_ORDERED:
        return (
            f"`orders: all` of {len(domains)} domains stands for {len(domains)}! rows. Use it with at most "
            f"{_MAX_ORDERED} domains, or list some orders."
        )
    count = sum(len(orders) if (orders := _orders(row, domains)) is not None else 1 for row in rows.values())
    return f"{count} rows, at most {MAX_ROWS} are compared. Leave some out." if count > MAX_ROWS else None


def _orders(row: Row, domains: Sequence[str]) -> Sequence[Sequence[str]] | None:
    if not isinstance(row, TrainRow) or row.orders is None:
        return None
    return list(itertools.permutations(domains)) if row.orders == "all" else row.orders


def _expanded(rows: Mapping[str, Row], domains: Sequence[str]) -> dict[str, Row]:
    """``rows`` with every row that has ``orders`` replaced by one per order, named ``NAME-first-second-...``."""
    expanded_rows: dict[str, Row] = {}
    for name, row in rows.items():
        orders = _orders(row, domains)
        if orders is None or not isinstance(row, TrainRow):
            expanded_rows[name] = row
            continue
        for order in orders:
            strategy = {"name": "sequential", "order": list(order)}
            if isinstance(row.strategy, dict):
                strategy = {**row.strategy, **strategy}
            expanded_rows["-".join([name, *order])] = row.model_copy(update={"strategy": strategy, "orders": None})
    return expanded_rows


# What must hold between the rows, and between a row and the base configuration


def _findings(study: Study) -> Iterator[Finding]:
    """Path in the file and message of everything wrong between rows."""
    config, rows, domains = study.config, study.rows, list(study.domains)
    if config.reference not in rows:
        yield ("reference",), f"unknown row {config.reference!r}: {nearest(config.reference, rows)}"
    elif is_shown_only(rows[config.reference]):
        yield ("reference",), f"{config.reference!r} is one model without seeds. Name a row that is trained."
    else:
        yield from _contrasts(study)
    yield from _repeated(config.seeds, ("seeds",))
    for name, row in rows.items():
        at: Key = ("rows", name)
        yield from _repeated(row.seeds or (), (*at, "seeds"))
        yield from _row(at, name, row, study)
    for name in sorted({AVERAGE, WORST, STARVED} & set(domains)):
        yield ("config",), f"the domain {name!r} has the name of a measure of studies. Give it another name."
    yield from _clashes(rows, domains)


def _contrasts(study: Study) -> Iterator[Finding]:
    measures = [AVERAGE, WORST, *([] if study.config.starved is None else [STARVED]), *study.domains]
    for index, contrast in enumerate(study.config.contrasts or ()):
        at: Key = ("contrasts", index)
        if contrast.row not in study.compared:
            yield (
                (*at, "row"),
                f"{contrast.row!r} is not compared with {study.config.reference!r}: "
                + nearest(contrast.row, study.compared),
            )
        if contrast.measure == STARVED and STARVED not in measures:
            yield (*at, "measure"), "needs to know what is starved. Set `starved`, for example starved: 0.5."
        elif contrast.measure not in measures:
            yield (*at, "measure"), f"unknown measure {contrast.measure!r}: {nearest(contrast.measure, measures)}"
        if contrast in study.contrasts[:index]:
            yield at, "is named twice. Remove one."


def _repeated(seeds: tuple[int, ...], at: Key) -> Iterator[Finding]:
    if len(set(seeds)) < len(seeds):
        yield at, f"names a seed twice, found {list(seeds)}. Give each once."


def _row(at: Key, name: str, row: Row, study: Study) -> Iterator[Finding]:
    match row:
        case ExpertsRow():
            steps = study.base.training.get("max_steps")
            if row.steps is None and (not isinstance(steps, int) or steps < len(study.domains)):
                yield (
                    at,
                    "needs training.max_steps in the base configuration to divide, or steps of its own. Give one of "
                    "them.",
                )
        case GivenRow() if isinstance(row.path, list) and len(row.path) != len(study.seeds(name)):
            yield (*at, "path"), f"names {len(row.path)} checkpoints for {len(study.seeds(name))} seeds. Give one each."
        case MergeRow():
            yield from _of(at, row, ExpertsRow, study)
            if row.density is not None and row.method != "ties":
                yield (*at, "density"), f"belongs to the method 'ties', found {row.method!r}. Remove it."
        case RefreshRow() | RollbackRow():
            yield from _of(at, row, TrainRow, study)
            yield from _options(at, row)
            if row.domain not in study.domains:
                yield (*at, "domain"), f"unknown domain {row.domain!r}: {nearest(row.domain, study.domains)}"
            else:
                yield from _later_stage(at, row, study.configs)


def _of(at: Key, row: MergeRow | RefreshRow | RollbackRow, kind: type[Row], study: Study) -> Iterator[Finding]:
    fitting = [name for name, other in study.rows.items() if isinstance(other, kind)]
    what = kind.model_fields["kind"].default
    if row.of not in fitting:
        hint = nearest(row.of, fitting) if fitting else f"There is none in this study. Add a row of kind `{what}`."
        yield (*at, "of"), f"needs a row of kind `{what}`, found {row.of!r}: {hint}"
        return
    have = set(study.seeds(row.of))
    missing = [seed for seed in row.seeds or study.config.seeds if seed not in have]
    if missing:
        listed = ", ".join(map(str, missing))
        yield (*at, "of"), f"{row.of!r} has no run of seed {listed}. Give it these seeds, or this row fewer."


def _options(at: Key, row: RefreshRow | RollbackRow) -> Iterator[Finding]:
    """What the options' own class refuses, field by field."""
    if not row.options:
        return
    from counterpoint.recovery import RefreshOptions, RollbackOptions  # needs torch

    kind: Any = RefreshOptions if isinstance(row, RefreshRow) else RollbackOptions
    known = [field.name for field in dataclasses.fields(kind)]
    unknown = [name for name in row.options if name not in known]
    for name in unknown:
        yield (*at, "options", name), f"no option of a {row.kind}: {nearest(name, known)}"
    try:
        TypeAdapter(kind).validate_python({key: value for key, value in row.options.items() if key in known})
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            place = [str(part) for part in problem["loc"][:1]]
            yield (*at, "options", *place), problem["msg"].removeprefix("Value error, ")


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


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigError(listed("The study has", list(dict.fromkeys(map(str, problems)))))
