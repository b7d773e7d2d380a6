"""From a file to a checked ``Config``; every problem of the file is reported at once."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterpoint.config.base import MAX_NAME
from counterpoint.config.checks import cross_findings, plain_findings
from counterpoint.config.document import Document, Problem, read_data, read_yaml
from counterpoint.config.domain import fill_domain
from counterpoint.config.fields import strip_tags
from counterpoint.config.messages import sentence
from counterpoint.config.overrides import apply_overrides
from counterpoint.config.schema import Config
from counterpoint.config.training_keys import refused_reason
from counterpoint.config.variables import literal_secrets
from counterpoint.errors import ConfigError
from counterpoint.inputs import expanded, kind_of, read_text

_MAX_BYTES = 1 << 20
_SHOWN = 50  # problems that are listed

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
    problems += [Problem(document.place(path), path, message) for path, message in cross_findings(_filled(document))]
    problems += _settings(document, check_training)
    secrets = literal_secrets(document.data, document.filled)
    problems += [Problem(document.place(path), path, message) for path, message in secrets]
    config: Config | None = None
    try:
        config = Config.model_validate(document.data)
    except ValidationError as error:
        seen = {problem.path for problem in problems}
        for details in error.errors(include_url=False):
            path = strip_tags(details["loc"])
            if path not in seen:
                problems.append(Problem(document.place(path), path, sentence(Config, details)))
    if config is None or problems:
        raise _error(problems)
    return config.took(document.filled)


def _settings(document: Document, check_training: TrainingCheck | None) -> list[Problem]:
    """What TRL cannot use under ``training``, where counterpoint does not refuse the key for a reason of its own."""
    training = document.data.get("training")
    if check_training is None or not isinstance(training, dict) or not training:
        return []
    return [
        Problem(document.place(("training", key)), ("training", key), message)
        for key, message in check_training(training)
        if refused_reason(key) is None
    ]


def plain_problems(document: Document) -> list[Problem]:
    """What stands in ``document`` that is no plain data; see ``plain_findings``."""
    return [Problem(document.place(path), path, message) for path, message in plain_findings(document.data)]


def _filled(document: Document) -> Any:
    """The data as the schema sees it, with the rewards that some sources bring."""
    domains = document.data.get("domains")
    if not isinstance(domains, dict):
        return document.data
    return {**document.data, "domains": {name: fill_domain(name, domain) for name, domain in domains.items()}}


def _error(problems: Sequence[Problem]) -> ConfigError:
    ordered = sorted(problems, key=_order)
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    lines = [f"  {problem}" for problem in ordered[:_SHOWN]]
    more = [f"  and {len(ordered) - _SHOWN} more."] if len(ordered) > _SHOWN else []
    return ConfigError("\n".join([f"The configuration has {count}:", *lines, *more]))


def _order(problem: Problem) -> tuple[bool, int]:
    line = problem.where.rsplit(":", 1)[-1]
    return problem.where.startswith("--set"), int(line) if line.isdigit() else 0


def _resolved(config: Config, path: Path) -> Config:
    """``config`` with its run named and its local paths made absolute, so that it can be read from anywhere."""
    folder = path.resolve().parent
    named = path.stem.endswith(config.strategy.label)
    name = config.run.name or re.sub(
        r"[^A-Za-z0-9._-]", "-", path.stem if named else f"{path.stem}-{config.strategy.label}"
    )
    name = name[:MAX_NAME]
    model = config.model
    if (found := _beside(model.path, folder)) is not None:
        model = model.model_copy(update={"path": str(found)})
    domains = {}
    for key, domain in config.domains.items():
        evaluation = domain.evaluation
        if evaluation.source is not None:
            evaluation = evaluation.model_copy(update={"source": _located(evaluation.source, folder)})
        update = {"source": _located(domain.source, folder), "evaluation": evaluation}
        domains[key] = domain.model_copy(update=update)
    run = config.run.model_copy(update={"name": name})
    return config.model_copy(update={"run": run, "model": model, "domains": domains})


def _located(source: Any, folder: Path) -> Any:
    if isinstance(source, tuple):
        return tuple(_located(one, folder) for one in source)
    if source.type != "file":
        return source
    found = _beside(source.path, folder) or folder / expanded(source.path)
    return source.model_copy(update={"path": str(found)})


def _beside(path: str, folder: Path) -> Path | None:
    """The existing file or folder that ``path`` means, looked for beside the configuration, then here."""
    wanted = expanded(path)
    return next((base for base in ((folder / wanted), Path.cwd() / wanted) if kind_of(base)), None)
