"""From a file to a checked ``Config``; every problem of the file is reported at once."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterpoint.config.checks import cross_findings
from counterpoint.config.document import Document, Problem, read_data, read_yaml
from counterpoint.config.domain import fill_domain
from counterpoint.config.fields import strip_tags
from counterpoint.config.messages import sentence
from counterpoint.config.overrides import apply_overrides
from counterpoint.config.schema import Config
from counterpoint.config.training_keys import refused_reason, unknown_setting
from counterpoint.config.variables import literal_secrets
from counterpoint.errors import ConfigError

SettingNames = Callable[[], Collection[str]]
"""Gives the names of all settings of ``trl.GRPOConfig``; asked only where there are keys to compare."""


def load_config(path: str | Path, overrides: Sequence[str] = (), training_names: SettingNames | None = None) -> Config:
    """The configuration in the YAML file ``path`` with every ``key=value`` of ``overrides`` written over it.

    Relative paths of data files and of the model are looked for beside the file, then in the current folder.

    Args:
        path: the file.
        overrides: ``key=value`` each, a dotted key and a YAML value.
        training_names: names that may stand under ``training``; without it they are checked when TRL's own
            configuration is built.

    Raises:
        ConfigError: one line per problem, each with ``file:line`` or the override, the key, what was found and what
            to do.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file. Give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the configuration cannot be read ({error}). Give a YAML file in UTF-8.") from None
    document = read_yaml(text, str(path))
    if document.data is not None or not document.problems:
        apply_overrides(document, overrides)
    config = _checked(document, training_names)
    return _resolved(config, path)


def check_document(document: Document, path: str | Path, training_names: SettingNames | None = None) -> Config:
    """The configuration in ``document``, checked and resolved as ``load_config`` does for the file ``path``.

    For documents that were read once and changed since. Raises ``ConfigError`` with every problem.
    """
    return _resolved(_checked(document, training_names), Path(path))


def parse_config(data: Mapping[str, Any], like: Config | None = None) -> Config:
    """The configuration in plain ``data``, checked as a file is. Raises ``ConfigError`` with every problem.

    Values are taken as they are; only what has the name of a secret (``hub_token``) is given as ``${VAR}``, as in a
    file. With ``like``, ``data`` are its values, some of them changed: what it took from the environment stays out of
    what is written.
    """
    if like is None:
        return _checked(read_data(dict(data), "config"))
    return _checked(Document(data=dict(data), filled=list(like.filled)))


def _checked(document: Document, training_names: SettingNames | None = None) -> Config:
    if document.problems and document.data is None:
        raise _error(document.problems)
    if not isinstance(document.data, dict):
        found = "nothing" if document.data is None else type(document.data).__name__
        message = f"a configuration is a mapping with at least `domains:`, found {found}."
        raise _error([*document.problems, Problem(document.name, (), message)])
    problems = list(document.problems)
    problems += [Problem(document.place(path), path, message) for path, message in cross_findings(_filled(document))]
    problems += _unknown_settings(document, training_names)
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


def _unknown_settings(document: Document, training_names: SettingNames | None) -> list[Problem]:
    """Keys under ``training`` that TRL does not have and that counterpoint does not refuse for a reason of its own."""
    training = document.data.get("training")
    if training_names is None or not isinstance(training, dict) or not training:
        return []
    known = training_names()
    return [
        Problem(document.place(("training", key)), ("training", key), unknown_setting(key, known))
        for key in training
        if key not in known and refused_reason(key) is None
    ]


def _filled(document: Document) -> Any:
    """The data as the schema sees it, with the rewards that some sources bring."""
    domains = document.data.get("domains")
    if not isinstance(domains, dict):
        return document.data
    return {**document.data, "domains": {name: fill_domain(name, domain) for name, domain in domains.items()}}


def _error(problems: Sequence[Problem]) -> ConfigError:
    ordered = sorted(problems, key=_order)
    count = "1 problem" if len(ordered) == 1 else f"{len(ordered)} problems"
    return ConfigError("\n".join([f"The configuration has {count}:", *(f"  {problem}" for problem in ordered)]))


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
    if source.type != "file":
        return source
    found = _beside(source.path, folder) or folder / Path(source.path).expanduser()
    return source.model_copy(update={"path": str(found)})


def _beside(path: str, folder: Path) -> Path | None:
    """The existing file or folder that ``path`` means, looked for beside the configuration, then here."""
    wanted = Path(path).expanduser()
    return next((base for base in ((folder / wanted), Path.cwd() / wanted) if base.exists()), None)
