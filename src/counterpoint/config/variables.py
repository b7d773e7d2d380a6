"""``${VAR}`` in a configuration: filled in from the environment for use, put back for the disk; and literal secrets."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.masking import is_secret_name, remember

Key = tuple[str | int, ...]

_DEEPEST = 100  # keys above each other among which secrets are looked for
_VARIABLE = re.compile(r"\$(\$?)\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Written(str):
    """A text of YAML that names variables; ``plain`` where it is written without quotes, so that it may be a number."""

    plain: bool

    def __new__(cls, text: str, plain: bool) -> "Written":
        """The text with the way it is written."""
        made = super().__new__(cls, text)
        made.plain = plain
        return made


@dataclass(frozen=True)
class Filled:
    """A value that came from the environment: where it stands, what it is, and the text that it was made of."""

    path: Key
    value: Any
    text: Written


def fill(text: str, path: Key) -> tuple[str, str | None, list[str]]:
    """``text`` with every variable's value; the same with the variables that were set, if any; and those missing.

    A variable that is not set takes its default, which is a text of the file like any other. As in a shell, empty
    counts as unset.
    """
    values: list[str] = []
    written: list[str] = []
    missing: list[str] = []
    used, end = False, 0
    for match in _VARIABLE.finditer(text):
        double, variable, default = match.groups()
        value, again = match[0][1:], match[0]
        if not double and (found := os.environ.get(variable)):
            remember(found, variable, secret=any(is_secret_name(str(part)) for part in path))
            value, again, used = found, f"${{{variable}}}", True
        elif not double:
            value, again = default or "", escaped(default or "")
            missing += [variable] if default is None else []
        values += [text[end : match.start()], value]
        written += [text[end : match.start()], again]
        end = match.end()
    return "".join([*values, text[end:]]), "".join([*written, text[end:]]) if used else None, missing


def escaped(text: str) -> str:
    """``text`` such that filling it in gives it back."""
    return _VARIABLE.sub(lambda match: "$" + match[0], text)


def put_back(data: Any, filled: Sequence[Filled]) -> Any:
    """``data`` with :class:`Written` texts in the places of ``filled`` that still hold what was filled in."""
    for one in filled:
        data = _put(data, long_form(one.path), one)
    return data


def _put(data: Any, path: Key, one: Filled) -> Any:
    if path:
        key = path[0]
        if isinstance(data, dict) and key in data:
            return {**data, key: _put(data[key], path[1:], one)}
        if isinstance(data, list) and isinstance(key, int) and key < len(data):
            return [*data[:key], _put(data[key], path[1:], one), *data[key + 1 :]]
        return data
    if data == one.value and isinstance(data, bool) == isinstance(one.value, bool):
        return one.text
    if isinstance(data, str) and isinstance(one.value, str) and data.endswith(f"/{one.value}"):  # made absolute
        return Written(escaped(data.removesuffix(one.value)) + one.text, one.text.plain)
    return data


def long_form(path: Key) -> Key:
    """Where a value stands once shorthands are spelled out: ``model`` is ``model.path``."""
    match path:
        case ("model",) | ("domains", _, "source") | ("domains", _, "evaluation", "source"):
            return (*path, "path")
        case ("domains", _, "source", int()) | ("domains", _, "evaluation", "source", int()):
            return (*path, "path")
        case ("curriculum",):
            return (*path, "function")
        case ("strategy",) | ("domains", _, "reward", int()):
            return (*path, "name")
        case ("domains", _, "reward"):
            return (*path, 0, "name")
        case ("domains", name, "reward", str() as key, *rest):
            return ("domains", name, "reward", 0, key, *rest)
    return path


def literal_secrets(data: Any, filled: Sequence[Filled]) -> Iterator[tuple[Key, str]]:
    """Path and message of every secret that is written out where options are free: a run keeps its configuration."""
    from_environment = {long_form(one.path) for one in filled}
    for path in secret_texts(data):
        if long_form(path) not in from_environment:
            yield (
                path,
                (
                    "looks like a secret, and a run keeps its configuration. Write '${VARIABLE}' here and set that "
                    "variable: the run keeps the name alone, and reads the value again when it is resumed."
                ),
            )


def secret_texts(data: Any, path: Key = (), *, free: bool = False, secret: bool = False) -> Iterator[Key]:
    """The path of every text that stands under the name of a secret.

    ``free``: the names below ``path`` are those of some library or function, not of the schema or of domains.
    """
    if len(path) > _DEEPEST:
        return
    if isinstance(data, dict):
        for key, item in data.items():
            below = (*path, key)
            is_free = free or below == ("training",) or (key == "options" and len(path) > 0)
            named = secret or (free and is_secret_name(str(key)))
            yield from secret_texts(item, below, free=is_free, secret=named)
    elif isinstance(data, list | tuple):
        for index, item in enumerate(data):
            yield from secret_texts(item, (*path, index), free=free, secret=secret)
    elif secret and isinstance(data, str) and data.strip():
        yield path
