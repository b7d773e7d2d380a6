"""Reaching into rows: dotted paths, and prompt templates that can do nothing else."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from counterpoint.errors import DomainError

_INDEX = re.compile(r"-?[0-9]{1,9}$")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")


@dataclass(frozen=True)
class Path:
    """A place in a row: ``answer``, ``question.stem`` or ``choices[0].text``. Keys and indices only, no attributes."""

    text: str

    def steps(self) -> list[str]:
        """The keys and indices on the way."""
        found = [match[1] or match[2] for match in _STEP.finditer(self.text)]
        if "".join(match[0] for match in _STEP.finditer(self.text)) != self.text or not found:
            raise DomainError(f"{{{self.text}}} is no column. Write {{column}}, {{column.key}} or {{column[0]}}.")
        return found

    def get(self, row: Mapping[str, Any]) -> Any:
        """The value in ``row``.

        Raises:
            DomainError: nothing is there; the message lists what is.
        """
        if self.text in row:
            return row[self.text]
        value: Any = row
        seen = ""
        for step in self.steps():
            if isinstance(value, Mapping):
                if step not in value:
                    raise DomainError(_missing(step, seen, "columns" if not seen else "keys", value))
                value = value[step]
            elif isinstance(value, list | tuple) and _INDEX.match(step):
                if not -len(value) <= int(step) < len(value):
                    raise DomainError(f"{seen!r} has {len(value)} items, so there is no [{step}].")
                value = value[int(step)]
            else:
                raise DomainError(f"{seen!r} is {_short(value)}, so it has no {step!r}.")
            seen = f"{seen}.{step}" if seen else step
        return value


@dataclass(frozen=True)
class Template:
    """Text with ``{path}`` where a row's values go; ``{{`` and ``}}`` are literal braces.

    >>> Template.parse("{a} + {b[0]} = {{x}}").render({"a": 1, "b": [2]})
    '1 + 2 = {x}'
    """

    parts: tuple[str | Path, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """The template written as ``text``.

        Raises:
            DomainError: a brace without its partner, or something else than a path between braces.
        """
        parts: list[str | Path] = []
        for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}|[^{}]+|[{}]", text):
            if match[1] is not None:
                path = Path(match[1].strip())
                path.steps()
                parts.append(path)
            elif match[0] in "{}":
                raise DomainError(
                    f"a single {match[0]!r} at character {match.start() + 1}. Write it twice for a brace."
                )
            else:
                parts.append(match[0][0] if match[0] in ("{{", "}}") else match[0])
        return cls(tuple(parts))

    @property
    def only_path(self) -> Path | None:
        """The path of a template that is nothing else."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Path) else None

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for ``row``: strings as they are, other values as JSON.

        Raises:
            DomainError: a column that is missing or null.
        """
        return "".join(part if isinstance(part, str) else _as_text(part, row) for part in self.parts)


def _as_text(path: Path, row: Mapping[str, Any]) -> str:
    value = path.get(row)
    if value is None:
        raise DomainError(f"{path.text!r} is null.")
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _missing(step: str, seen: str, what: str, value: Mapping[str, Any]) -> str:
    where = f" in {seen!r}" if seen else ""
    return f"no {step!r}{where}; the {what} are: {', '.join(map(str, value)) or 'none'}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
