"""``--set key=value``: one value of the document replaced or added, named by its dotted path."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from counterpoint.config.document import Document, Key, Problem, dotted, read_yaml
from counterpoint.config.domain import expand_reward
from counterpoint.config.sources import expand_source
from counterpoint.config.variables import Filled
from counterpoint.inputs import MAX_DEPTH
from counterpoint.masking import MASK, is_secret_name, masked_names

_INDEX = re.compile(r"[0-9]{1,6}$")
_SHOWN = 200  # characters of an override that stand in a message


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
    document.data = {} if document.data is None else document.data
    holder: Any = document.data
    done: Key = ()
    try:
        for part in path[:-1]:
            key = _key(holder, part, done)
            holder[key] = _opened(holder, key, done)
            document.places.setdefault((*done, key), where)  # made by this override
            holder, done = holder[key], (*done, key)
        last = _key(holder, path[-1], done)
    except LookupError as error:
        document.problems.append(Problem(where, path, f"cannot be set: {error.args[0]}."))
        return
    holder[last] = value
    written = (*done, last)
    for known in [known for known in document.places if known[: len(written)] == written]:
        del document.places[known]
    document.places[written] = where
    kept = [one for one in document.filled if one.path[: len(written)] != written]
    document.filled = [*kept, *(replace(one, path=(*written, *one.path)) for one in filled)]


def _key(holder: Any, part: str | int, done: Key) -> str | int:
    """``part`` as a key of the mapping, or an index into the list, ``holder``."""
    if isinstance(holder, dict):
        return part
    if isinstance(holder, list) and _INDEX.match(str(part)) and int(part) < len(holder):
        return int(part)
    shown = MASK if any(is_secret_name(str(part)) for part in done) else repr(holder)
    kind = (
        f"a list of {len(holder)}, whose items are named 0, 1, ..."
        if isinstance(holder, list)
        else f"{shown}, not a mapping"
    )
    raise LookupError(f"{dotted(done) or 'the document'} is {kind}")


def _opened(holder: Any, key: Any, done: Key) -> Any:
    """What stands at ``key``: made where nothing does, its long form where a shorthand does."""
    below = holder.get(key) if isinstance(holder, dict) else holder[key]
    return {} if below is None else _expand((*done, key), below)


def _expand(path: Key, value: Any) -> Any:
    """The long form of a shorthand at ``path``; ``value`` itself where there is none."""
    if isinstance(value, dict | list):
        return value
    match path:
        case ("model",):
            return {"path": value}
        case ("strategy",):
            return {"name": value}
        case ("domains", _, "source") | ("domains", _, "evaluation", "source"):
            return expand_source(value)
        case ("domains", _, "source", int()) | ("domains", _, "evaluation", "source", int()):
            return expand_source(value)
        case ("domains", _, "reward"):
            return expand_reward(value)
        case ("domains", _, "reward", int()):
            return {"name": value}
    return value
