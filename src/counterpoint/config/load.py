"""From a file and ``--set key=value`` to a checked ``Config``; every problem is reported at once."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterpoint.config.checks import cross_findings, plain_findings
from counterpoint.config.document import Document, Problem, dotted, read_data, read_yaml
from counterpoint.config.domain import MetricConfig, fill_domain
from counterpoint.config.schema import Config
from counterpoint.config.section import MAX_NAME, Section, explained
from counterpoint.config.sources import expand_source
from counterpoint.config.training_keys import refused_reason
from counterpoint.config.variables import Filled, Key, literal_secrets, long_form
from counterpoint.errors import ConfigError, listed
from counterpoint.inputs import MAX_DEPTH, expanded, kind_of, read_text
from counterpoint.masking import MASK, is_secret_name, masked_names

_MAX_BYTES = 1 << 20
_SHOWN = 200  # characters of an override that stand in a message
_INDEX = re.compile(r"[0-9]{1,6}$")

TrainingCheck = Callable[[Mapping[str, Any]], Iterable[tuple[str, str]]]
"""Gives key and message of everything wrong with the values under ``training``."""


def load_config(path: str | Path, overrides: Sequence[str] = (), check_training: TrainingCheck | None = None) -> Config:
    """The configuration in the YAML file ``path`` with every ``key=value`` of ``overrides`` written over it.

    Relative paths of data files and of the model are looked for beside the file, then in the current folder.

    Args:
        path: the file.
        overrides: ``key=value`` each, a dotted key and a YAML value.
        check_training: checks what stands under ``training``; without it that is left to the building of TRL's own
            configuration.

    Raises:
        ConfigError: one line per problem, each with ``file:line`` or the override, the key, what was found and what
            to do.
    """
    path = Path(path)
    document = read_document(path, "configuration file")
    if document.data is not None or not document.problems:
        apply_overrides(document, overrides)
    config = _checked(document, check_training)
    return _resolved(config, path)


def read_document(path: Path, what: str) -> Document:
    """The YAML file ``path`` as plain data with its problems; ``what`` names it where it cannot be read at all."""
    text = read_text(path, ConfigError, what, "Give the path of a YAML file in UTF-8.", limit=_MAX_BYTES)
    return read_yaml(text, str(path))


def check_document(document: Document, path: str | Path, check_training: TrainingCheck | None = None) -> Config:
    """The configuration in ``document``, checked and resolved as ``load_config`` does for the file ``path``.

    For documents that were read once and changed since. Raises ``ConfigError`` with every problem.
    """
    return _resolved(_checked(document, check_training), Path(path))


def parse_config(data: Mapping[str, Any], like: Config | None = None) -> Config:
    """The configuration in plain ``data``, checked as a file is. Raises ``ConfigError`` with every problem.

    Values are taken as they are; only what has the name of a secret (``hub_token``) is given as ``${VAR}``, as in a
    file. With ``like``, ``data`` are its values, some of them changed: what it took from the environment stays out of
    what is written.
    """
    if like is None:
        return _checked(read_data(dict(data), "config"))
    return _checked(Document(data=dict(data), filled=list(like.filled)))


def _checked(document: Document, check_training: TrainingCheck | None = None) -> Config:
    if document.problems and document.data is None:
        raise _error(document.problems)
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        message = f"a configuration is a mapping with at least `domains:`, found {found}."
        raise _error([*document.problems, Problem(document.name, (), message)])
    problems = [*document.problems, *plain_problems(document)]
    if len(problems) > len(document.problems):  # the checks below are made for plain data
        raise _error(problems)
    problems += [document.problem(*finding) for finding in _findings(document, check_training)]
    config, found_by_schema = validated(Config, document)
    seen = {problem.path for problem in problems}
    problems += [problem for problem in found_by_schema if problem.path not in seen]
    if config is None or problems:
        raise _error(problems)
    assert isinstance(config, Config)
    return config.took(document.filled)


def validated(
    section: type[Section], document: Document, at: Key = (), data: Any = None
) -> tuple[Section | None, list[Problem]]:
    """The ``section`` in ``document``, or in ``data`` that stands ``at`` a key of it, and what its fields refuse."""
    try:
        return section.model_validate(document.data if data is None else data), []
    except ValidationError as error:
        findings = (explained(section, details) for details in error.errors(include_url=False))
        return None, [document.problem((*at, *path), message) for path, message in findings]


def _findings(document: Document, check_training: TrainingCheck | None) -> Iterator[tuple[Key, str]]:
    data = document.data
    domains, training = data.get("domains"), data.get("training")
    if isinstance(domains, dict):  # with the rewards that some sources bring
        data = {**data, "domains": {name: fill_domain(name, domain) for name, domain in domains.items()}}
    yield from cross_findings(data)
    if check_training is not None and isinstance(training, dict) and training:
        for key, message in check_training(training):
            if refused_reason(key) is None:
                yield ("training", key), message
    yield from literal_secrets(document.data, document.filled)


def plain_problems(document: Document) -> list[Problem]:
    """What stands in ``document`` that is no plain data; see ``plain_findings``."""
    return [document.problem(*finding) for finding in plain_findings(document.data)]


def _error(problems: Sequence[Problem]) -> ConfigError:
    ordered = sorted(problems, key=_order)
    return ConfigError(listed("The configuration has", ordered))


def _order(problem: Problem) -> tuple[bool, int]:
    line = problem.where.rsplit(":", 1)[-1]
    return problem.where.startswith("--set"), int(line) if line.isdigit() else 0


def _resolved(config: Config, path: Path) -> Config:
    """``config`` with its run named and its local paths made absolute, so that it can be read from anywhere."""
    folder = path.resolve().parent
    labels = [config.strategy.label, *([config.balance.label] if config.balance.name != "none" else [])]
    if path.stem.endswith("-".join(labels)):
        labels = []
    whole = "-".join([path.stem, *(label for label in labels if not path.stem.endswith(label))])
    name = config.run.name or re.sub(r"[^A-Za-z0-9._-]", "-", whole)
    name = name[:MAX_NAME]
    model = config.model
    if (found := _beside(model.path, folder)) is not None:
        model = model.model_copy(update={"path": str(found)})
    domains = {}
    for key, domain in config.domains.items():
        evaluation = domain.evaluation
        if evaluation.source is not None:
            evaluation = evaluation.model_copy(update={"source": _located(evaluation.source, folder)})
        update: dict[str, Any] = {"source": _located(domain.source, folder), "evaluation": evaluation}
        for rewards in ("reward", "metrics"):
            update[rewards] = tuple(_with_folder(reward, folder) for reward in getattr(domain, rewards))
        domains[key] = domain.model_copy(update=update)
    run = config.run.model_copy(update={"name": name})
    curriculum = config.curriculum
    if curriculum is not None and (found_folder := _module_folder(curriculum.function, curriculum.folder, folder)):
        curriculum = curriculum.model_copy(update={"folder": found_folder})
    return config.model_copy(update={"run": run, "model": model, "domains": domains, "curriculum": curriculum})


def _located(source: Any, folder: Path) -> Any:
    if isinstance(source, tuple):
        return tuple(_located(one, folder) for one in source)
    if source.type != "file":
        return source
    found = _beside(source.path, folder) or folder / expanded(source.path)
    return source.model_copy(update={"path": str(found)})


def _with_folder(reward: MetricConfig, folder: Path) -> MetricConfig:
    """``reward`` with the folder of its module or its model, where that was named or lies beside the configuration."""
    model = reward.options.get("model")
    if reward.name == "reward_model" and isinstance(model, str) and (found := _beside(model, folder)) is not None:
        return reward.model_copy(update={"options": reward.options | {"model": str(found)}})
    found_folder = _module_folder(reward.name, reward.folder, folder)
    return reward if found_folder is None else reward.model_copy(update={"folder": found_folder})


def _module_folder(name: str, given: str | None, folder: Path) -> str | None:
    """The folder of the module of ``name``, an object of the user's: as given, or ``folder`` where it lies there."""
    if given is not None:
        return str(_beside(given, folder) or folder / given)
    package, _, _ = name.partition(":")[0].partition(".")
    own = ":" in name and package.isidentifier()
    there = own and any(kind_of(folder / file) is not None for file in (f"{package}.py", package))
    return str(folder) if there else None


def _beside(path: str, folder: Path) -> Path | None:
    """The existing file or folder that ``path`` means, looked for beside the configuration, then here."""
    wanted = expanded(path)
    return next((base for base in ((folder / wanted), Path.cwd() / wanted) if kind_of(base)), None)


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Write every ``key=value`` of ``overrides`` into ``document``, in order; problems are collected there."""
    for override in overrides:
        name, equals, text = override.partition("=")
        where = f"--set {masked_names(override)[:_SHOWN]}"
        path: Key = tuple(name.strip().split("."))
        if not equals or not all(path):
            document.problems.append(Problem(where, (), "not of the form key=value, as in training.max_steps=20."))
            continue
        if len(path) > MAX_DEPTH:
            document.problems.append(Problem(where, path[:3], f"names a key more than {MAX_DEPTH} deep."))
            continue
        parsed = read_yaml(text, where)
        document.problems += [Problem(where, path, problem.message) for problem in parsed.problems]
        if not parsed.problems:
            set_value(document, path, parsed.data, where, parsed.filled)


def set_value(document: Document, path: Key, value: Any, where: str, filled: Sequence[Filled] = ()) -> None:
    """Write ``value`` at ``path``, noting that it was written at ``where``; a problem is collected in ``document``.

    ``filled`` is what came from the environment, by its path within ``value``.
    """
    try:
        document.data, path = _changed(document.data, (), path, value)
    except LookupError as error:
        document.problems.append(Problem(where, path, f"cannot be set: {error.args[0]}."))
        return
    document.places = {known: place for known, place in document.places.items() if known[: len(path)] != path}
    for length in range(1, len(path) + 1):  # what was made by this override, too
        document.places.setdefault(path[:length], where)
    kept = [one for one in document.filled if one.path[: len(path)] != path]
    document.filled = [*kept, *(replace(one, path=(*path, *one.path)) for one in filled)]


def _changed(holder: Any, done: Key, path: Key, value: Any) -> tuple[Any, Key]:
    """What stands at ``done``, with ``value`` written below it at ``path``; and that whole path, indices as numbers."""
    if not path:
        return value, done
    holder = {} if holder is None else _expand(done, holder)
    part: Any = path[0]
    if isinstance(holder, dict):
        below, whole = _changed(holder.get(part), (*done, part), path[1:], value)
        return {**holder, part: below}, whole
    if isinstance(holder, list) and _INDEX.match(str(part)) and int(part) < len(holder):
        index = int(part)
        below, whole = _changed(holder[index], (*done, index), path[1:], value)
        return [*holder[:index], below, *holder[index + 1 :]], whole
    shown = MASK if any(is_secret_name(str(key)) for key in done) else repr(holder)
    items = f"a list of {len(holder)}, whose items are named 0, 1, ..." if isinstance(holder, list) else ""
    raise LookupError(f"{dotted(done) or 'the document'} is {items or f'{shown}, not a mapping'}")


def _expand(path: Key, value: Any) -> Any:
    """The long form of a shorthand at ``path``; ``value`` itself where there is none."""
    if isinstance(value, dict | list) or not path:
        return value
    inner = long_form(path)[len(path) :]
    if path[0] == "domains" and inner == ("path",):
        return expand_source(value)
    for key in reversed(inner):
        value = [value] if key == 0 else {key: value}
    return value
