"""What others wrote: one place reads it and turns what parsers and the system raise into errors that say what to do."""

import csv
import json
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from counterpoint.errors import CounterpointError, first_line

MAX_DEPTH = 64
"""Mappings and lists inside one another; tools further on fail at a few hundred."""

MAX_TEXT = 1 << 26
"""Bytes of a file that is read whole; the index of the largest models has a tenth of that."""

FAULTS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,  # JSONDecodeError and UnicodeDecodeError are some
    OverflowError,
    RecursionError,
    MemoryError,
    zlib.error,
    csv.Error,
    yaml.YAMLError,
)
"""What reading and parsing a bad file raises."""

LIBRARY_FAULTS: tuple[type[Exception], ...] = (
    *FAULTS,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
)
"""What a library raises besides, when it is handed settings that it did not expect."""

_NESTS = (dict, list, tuple)
_NO_TEXT = re.compile("[\0\ud800-\udfff]")

MAX_LAYERS = 10_000
"""Of a model that is built from its configuration, which a number too many would keep busy for ever."""

Kind = type[CounterpointError]


@contextmanager
def reading(where: object, kind: Kind, remedy: str = "", also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns what a parser or the system raises into ``kind``: ``WHERE: cannot be read (REASON). REMEDY``.

    Args:
        where: the file, or file and line.
        kind: the error to raise.
        remedy: what to do.
        also: errors of a library of its own kind, besides ``FAULTS``.
    """
    try:
        yield
    except CounterpointError:
        raise
    except (*FAULTS, *also) as error:
        raise kind(f"{where}: cannot be read ({_reason(error)}). {remedy}".rstrip()) from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"nested more than {MAX_DEPTH} deep"
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return f"not valid JSON: {error.msg}, {place}"
    if isinstance(error, UnicodeError):
        return f"not text in UTF-8: {error}"
    if isinstance(error, csv.Error):
        return f"not valid CSV: {error}"
    return first_line(error)


def refuse_pickles(folder: str | Path, where: str, kind: type[CounterpointError]) -> None:
    """Refuses a folder of a model without safetensors, before a library looks for a pickle there."""
    folder = Path(folder)
    if kind_of(folder) == "folder" and not list(folder.glob("*.safetensors")):
        found = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise kind(
            f"{where}: no .safetensors weights there, found {found}. Save the model with save_pretrained; pickled "
            "weights are not read."
        )


def kind_of(path: str | Path) -> str | None:
    """``file``, ``folder``, ``device or pipe``, or None where nothing is or nothing can be of that name."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return None
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "device or pipe"


def refuse_devices(folder: str | Path, kind: Kind) -> None:
    """Refuses a folder that holds a pipe or a device, which a library would wait for, or read, for ever."""
    if kind_of(folder) != "folder":
        return
    with reading(folder, kind):
        odd = [item.name for item in Path(folder).iterdir() if kind_of(item) == "device or pipe"]
    if odd:
        raise kind(f"{folder}: {odd[0]} is a device or pipe, and files are expected. Remove it.")


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` filled in, where that is somebody's home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_text(path: Path, kind: Kind, what: str, remedy: str = "", limit: int = MAX_TEXT) -> str:
    """The text of a regular file in UTF-8 of at most ``limit`` bytes; ``what`` names it in the errors of ``kind``."""
    found = kind_of(path)
    if found is None:
        raise kind(f"{path}: there is no such {what}. {remedy}".rstrip())
    if found != "file":
        raise kind(f"{path}: cannot be read as {what}, it is a {found}. {remedy}".rstrip())
    with reading(path, kind, remedy), path.open("rb") as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise kind(f"{path}: more than {limit >> 20} MB, too much for a {what}. {remedy}".rstrip())
        return data.decode("utf-8")


def parse_json(text: str, where: object, kind: Kind, remedy: str = "") -> Any:
    """The value written in ``text``, nested at most ``MAX_DEPTH`` deep."""
    with reading(where, kind, remedy):
        value = json.loads(text)
        if text.count("[") + text.count("{") > MAX_DEPTH and is_deep(value):
            raise RecursionError
    return value


def read_json(path: Path, kind: Kind, what: str, remedy: str = "") -> dict[str, Any]:
    """The JSON object in a file; see ``read_text``."""
    value = parse_json(read_text(path, kind, what, remedy), path, kind, remedy)
    if not isinstance(value, dict):
        raise kind(f"{path}: a JSON object was expected, found {type(value).__name__}. {remedy}".rstrip())
    return value


def is_deep(value: Any) -> bool:
    """Whether mappings and lists stand inside one another more than ``MAX_DEPTH`` deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, _NESTS)]
        level = [part for items in inside for part in items]
        if not level:
            return False
    return True


@dataclass
class Place:
    """A line of a file that is being read; a message that is made later names the line that was reached."""

    path: Path
    line: int = 1

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def is_text(text: str) -> bool:
    """Whether every tool can hold ``text``: no NUL, and no half of a surrogate pair, which UTF-8 cannot write."""
    return not _NO_TEXT.search(text)
