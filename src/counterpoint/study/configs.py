"""The configuration of every run of a study: the base configuration with what its row changes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterpoint.config import Config
from counterpoint.config.document import Document, Problem
from counterpoint.config.load import TrainingCheck, check_document, set_value
from counterpoint.config.variables import Filled, Key
from counterpoint.errors import ConfigError
from counterpoint.study.schema import ExpertsRow, Row, TrainRow

RowConfigs = dict[tuple[str, str], Config]
"""Row and domain (``""`` where the row is not of experts) -> configuration, all but the seed and the run's name."""

Change = tuple[Key, Any]

COMMON: tuple[Change, ...] = ((("run", "keep"), 1), (("evaluation", "before"), False))
"""What a study sets in every run: the base is a row of its own, and only the last checkpoint is kept (every stage's
end is kept besides). A row may set both differently."""


def build_configs(
    rows: Mapping[str, Row], base: Document, base_path: Path, study: Document, check_training: TrainingCheck | None
) -> tuple[RowConfigs, Config | None, list[Problem]]:
    """The configurations of all rows, that of the base, and everything wrong with any of them."""
    configs: RowConfigs = {}
    problems: list[Problem] = []
    checked_base, found = _checked(base, base_path, (), study.name, check_training)
    problems += found
    for row_name, row in rows.items():
        for domain, changes in _variants(row, base.data):
            where = study.place(("rows", row_name, "set") if getattr(row, "set", None) else ("rows", row_name))
            settings = list(_settings_of(study.filled, row_name))
            config, found = _checked(base, base_path, changes, where, check_training, settings)
            problems += found
            if config is not None:
                configs[row_name, domain] = config
    return configs, checked_base, problems


def _variants(row: Row, base: Mapping[str, Any]) -> Iterator[tuple[str, list[Change]]]:
    if isinstance(row, ExpertsRow):
        domains = domains_of(base)
        for index, domain in enumerate(domains):
            alone = {"name": "sequential", "order": [domain]}
            changes: list[Change] = [(("strategy",), alone)]
            changes += [((key,), None) for key in ("schedule", "curriculum") if key in base]  # of several domains
            if (steps := row.steps or _part(base, index, len(domains))) is not None:
                changes.append((("training", "max_steps"), steps))
            yield domain, [*changes, *_written(row.set)]
    elif isinstance(row, TrainRow):
        strategy: list[Change] = [] if row.strategy is None else [(("strategy",), row.strategy)]
        yield "", [*strategy, *_written(row.set)]
    else:
        yield "", []


def domains_of(base: Mapping[str, Any]) -> list[str]:
    """The names under ``domains`` in the data of a configuration, which may be of any type still."""
    domains = base.get("domains")
    return list(domains) if isinstance(domains, dict) else []


def _part(base: Mapping[str, Any], index: int, count: int) -> int | None:
    """The steps of one of ``count`` domains where the budget is divided as a sequential run divides it."""
    training = base.get("training")
    steps = training.get("max_steps") if isinstance(training, dict) else None
    return steps // count + (index < steps % count) if isinstance(steps, int) and steps >= count else None


def _written(settings: Mapping[str, Any]) -> Iterator[Change]:
    for key, value in settings.items():
        yield tuple(key.split(".")), value


def of_row(filled: Iterable[Filled], row: str) -> Iterator[Filled]:
    """What one row took from the environment; a row of several orders has become rows named after it."""
    for one in filled:
        match one.path:
            case ("rows", str() as name, *rest) if row == name or row.startswith(f"{name}-"):
                yield replace(one, path=("rows", row, *rest))


def _settings_of(filled: Iterable[Filled], row: str) -> Iterator[Filled]:
    """The same in the places of the row's configuration."""
    for one in of_row(filled, row):
        match one.path:
            case (_, _, "set", str() as key, *rest):
                parts = (int(part) if part.isdigit() else part for part in key.split("."))
                yield replace(one, path=(*parts, *rest))
            case (_, _, "strategy", *rest):
                yield replace(one, path=("strategy", *rest))
            case (_, _):
                yield replace(one, path=("strategy",))


def _checked(
    base: Document,
    base_path: Path,
    changes: Any,
    where: str,
    check_training: TrainingCheck | None,
    filled: Sequence[Filled] = (),
) -> tuple[Config | None, list[Problem]]:
    document = Document(base.data, base.name, dict(base.places), filled=list(base.filled))
    for path, value in (*COMMON, *changes):
        for leaf, part in _leaves(document.data, path, value):
            set_value(document, leaf, part, where)
    document.filled += filled
    try:
        return check_document(document, base_path, check_training), []
    except ConfigError as error:
        return None, [Problem("", (), line.strip()) for line in str(error).splitlines()[1:]]


def _leaves(data: Any, path: Key, value: Any) -> Iterator[Change]:
    """A mapping that meets a mapping changes the keys it names; all else is written over what stands there."""
    held = data
    for part in path:
        held = held.get(part) if isinstance(held, dict) else None
    if isinstance(value, dict) and isinstance(held, dict) and path not in (("strategy",), ("balance",)):
        for key, part in value.items():
            yield from _leaves(data, (*path, key), part)
    else:
        yield path, value
