"""What an analysis found: a frozen dataclass that prints as short tables and is written and read as JSON here alone.

A result is a subclass of :class:`Result`: ``print(found)``, ``found.to_frame()``, ``found.to_dict()``,
``found.write(path)``; in a notebook it shows itself. ``read_result(Damage, path)`` reads what was written.
"""

import dataclasses
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from counterpoint.disk import write_json
from counterpoint.errors import CounterpointError
from counterpoint.tables import Table

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

T = TypeVar("T")

VERSION = 2
"""Version of every file of results; it rises when a field is renamed, removed or changes its meaning."""


class Result(ABC):
    """Base of results; a subclass is a frozen dataclass with ``eq=False`` where it holds tensors."""

    kind: ClassVar[str]
    """Name in files: ``counterpoint.KIND``."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """What people look at, the most important table first."""

    def sentences(self) -> Sequence[str]:
        """Verdicts and warnings that stand below the tables."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: tensors as nested lists, numbers that JSON lacks as None."""
        found: dict[str, Any] = plain(self)
        return {"schema": f"counterpoint.{self.kind}", "version": VERSION} | found

    def to_frame(self) -> "pandas.DataFrame":
        """The first table as a pandas frame."""
        return self.tables()[0].to_frame()

    def write(self, path: str | Path) -> None:
        """Writes ``to_dict`` as JSON, whole or not at all."""
        write_json(Path(path), self.to_dict())

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich.text import Text

        yield from self.tables()
        yield from (Text(sentence) for sentence in self.sentences())

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, color_system=None, highlight=False)
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {', '.join(table.title for table in self.tables())}>"

    def _repr_html_(self) -> str:
        import html

        lines = (f"<p>{html.escape(sentence)}</p>" for sentence in self.sentences())
        return "".join([*(table.to_html() for table in self.tables()), *lines])


def plain(value: Any) -> Any:
    """``value`` as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # a tensor or an array
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_plain(kind: type[T], value: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` from what ``plain`` gave; fields that it does not know are left out.

    Raises:
        CounterpointError: a field is missing or of another type.
    """
    found: T = _typed(kind, value, kind.__name__)
    return found


def _typed(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (kind,) = [argument for argument in arguments if argument is not type(None)]
        return _typed(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _expect(isinstance(value, Mapping), where, "an object", value)
        hints = typing.get_type_hints(kind)
        fields = [field for field in dataclasses.fields(kind) if field.init and field.name in value]
        try:
            return kind(**{f.name: _typed(hints[f.name], value[f.name], f"{where}.{f.name}") for f in fields})
        except TypeError as error:
            raise CounterpointError(f"{where}: {error}") from error
    if origin is tuple:
        _expect(isinstance(value, Sequence) and not isinstance(value, str), where, "a list", value)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        _expect(len(value) == len(arguments), where, f"{len(arguments)} entries", value)
        return tuple(_typed(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(zip(arguments, value, strict=True)))
    if origin in (dict, Mapping):
        _expect(isinstance(value, Mapping), where, "an object", value)
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float:
        _expect(value is None or isinstance(value, int | float), where, "a number", value)
        return math.nan if value is None else float(value)  # JSON has no infinity: it was written as null
    if kind in (int, str, bool):
        _expect(type(value) is kind, where, kind.__name__, value)
    return Path(value) if kind is Path else value


def _expect(holds: bool, where: str, wanted: str, found: Any) -> None:
    if not holds:
        raise CounterpointError(f"{where} must be {wanted}; found {str(found)[:80]!r}.")
