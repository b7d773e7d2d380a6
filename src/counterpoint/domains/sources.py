"""Rows of any source, before they are made into prompts: files (JSONL, JSON, CSV, Parquet), the hub, tasks.

Files are read with the standard library: every value stays as it was written, and an error names file and line.
"""

import csv
import difflib
import gzip
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from counterpoint.config import FileSource, HubSource, PocketSource, ReasoningGymSource
from counterpoint.config.sources import FILE_SUFFIXES
from counterpoint.domains.prompts import Column
from counterpoint.errors import DomainError, MissingExtraError, nearest
from counterpoint.inputs import LIBRARY_FAULTS, Place, kind_of, parse_json, reading

Row = dict[str, Any]
Source = PocketSource | FileSource | HubSource | ReasoningGymSource

_MEND = "Mend the file, or leave this out."
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape that may be half of a surrogate pair
_MAX_FIELD = 1 << 30  # characters of one CSV value; Python's own limit is 131072
_TRIES = 50  # draws per wanted test prompt before a pocket task counts as exhausted


def read_source(source: Source, limit: int | None) -> list[Row]:
    """The first ``limit`` rows of ``source`` for training.

    Raises:
        DomainError: the source is missing, unreadable or malformed.
        MissingExtraError: it needs a package that is not installed.
    """
    match source:
        case FileSource():
            return read_file(source, limit)
        case HubSource():
            return _hub(source, limit)
        case ReasoningGymSource():
            return _reasoning_gym(source, limit)
        case PocketSource():
            task = _pocket_task(source)
            return [task.generate("train", index) for index in range(min(source.size, limit or source.size))]


def read_pocket_test(source: PocketSource, size: int) -> list[Row]:
    """``size`` different held-out rows of a pocket task, or fewer if it has fewer."""
    task = _pocket_task(source)
    unique: dict[str, Row] = {}
    for index in range(size * _TRIES):
        row = task.generate("test", index)
        unique.setdefault(row["prompt"], row)
        if len(unique) == size:
            break
    return list(unique.values())


def _pocket_task(source: PocketSource) -> Any:
    from counterpoint.pocket.dial import ALL_TASKS, pocket_task

    task = str(source.task)
    if task not in ALL_TASKS:
        raise DomainError(f"unknown pocket task {task!r}: {nearest(task, ALL_TASKS)} Set source.task.")
    return pocket_task(task, source.cue, source.length)


def _hub(source: HubSource, limit: int | None) -> list[Row]:
    import datasets

    try:
        data = datasets.load_dataset(source.path, source.config, split=source.split, revision=source.revision)
    except LIBRARY_FAULTS as error:  # offline, unknown id, gated, unknown configuration or split
        wanted = f"{source.path} (config {source.config}, split {source.split})"
        raise DomainError(
            f"the hub dataset {wanted} cannot be loaded: {error}. Check its id, config and split, and the network; "
            "a local copy is read with type: file."
        ) from error
    return data.select(range(min(limit or len(data), len(data)))).to_list()


def _reasoning_gym(source: ReasoningGymSource, limit: int | None) -> list[Row]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("A reasoning_gym source", "reasoning-gym") from error
    if source.task not in DATASETS:
        raise DomainError(f"unknown reasoning_gym task {source.task!r}: {nearest(source.task, DATASETS)}")
    try:
        task = reasoning_gym.create_dataset(source.task, size=source.size, seed=source.seed, **source.options)
        rows = [task[index] for index in range(min(source.size, limit or source.size))]
    except LIBRARY_FAULTS as error:  # its tasks refuse options in many ways, some when they make a row
        raise DomainError(f"reasoning_gym task {source.task!r} refuses its options: {error}.") from error
    return [
        {"prompt": row["question"], "question": row["question"], "answer": row["answer"], "entry": row} for row in rows
    ]


def read_file(source: FileSource, limit: int | None) -> list[Row]:
    """The first ``limit`` rows of the file.

    Raises:
        DomainError: the file is missing (naming the nearest), unreadable, or malformed (naming the line).
    """
    path = Path(source.path)
    if (found := kind_of(path)) != "file":
        raise DomainError(f"{path}: is a {found}. Give one file." if found else _missing(path))
    return list(islice(_READERS[_format(source, path)](path, source), limit))


def _missing(path: Path) -> str:
    folder = path.parent
    if kind_of(folder) != "folder":
        return f"{path}: there is no such file, and no folder {folder}. Correct source.path."
    names = [item.name for item in folder.iterdir() if item.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "correct source.path."
    return f"{path}: there is no such file; {hint}"


def _format(source: FileSource, path: Path) -> str:
    if source.format != "auto":
        return source.format
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in FILE_SUFFIXES:
        known = ", ".join(FILE_SUFFIXES)
        raise DomainError(f"{path}: the suffix {suffix!r} tells no format (known: {known}). Set source.format.")
    return FILE_SUFFIXES[suffix]


def _open_text(path: Path) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    # what is no UTF-8 is refused by `_check_text`, which knows the line
    return opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def _check_text(text: str) -> None:
    """Raises UnicodeError for what was no UTF-8, or is half of a pair of escapes: neither can be written again."""
    if not text.isascii():
        text.encode()


def _parse(text: str, where: object) -> Any:
    _check_text(text)
    value = parse_json(text, where, DomainError, _MEND)
    if _HALF.search(text):
        _check_text(json.dumps(value, ensure_ascii=False))
    return value


def _object(value: Any, where: object) -> Row:
    if not isinstance(value, dict):
        raise DomainError(f"{where}: a row must be a JSON object, found {type(value).__name__}.")
    return value


def _jsonl(path: Path, source: FileSource) -> Iterator[Row]:
    place = Place(path)
    with reading(place, DomainError, _MEND), _open_text(path) as file:
        for place.line, line in enumerate(file, start=1):
            if line.strip():
                yield _object(_parse(line, place), place)


def _json(path: Path, source: FileSource) -> Iterator[Row]:
    with reading(path, DomainError, _MEND), _open_text(path) as file:
        data = _parse(file.read(), path)
    if source.field is not None:
        if not isinstance(data, dict):
            raise DomainError(f"{path}: source.field is {source.field!r}, but the file holds no object. Remove it.")
        try:
            data = Column(source.field).get(data)
        except DomainError as error:
            raise DomainError(f"{path}: source.field: {error}") from None
    if not isinstance(data, list):
        lists = [key for key, value in data.items() if isinstance(value, list)] if isinstance(data, dict) else []
        hint = f" Set source.field to one of: {', '.join(lists)}." if lists else " Rows must be a list of objects."
        raise DomainError(f"{path}: expected a list of rows, found {type(data).__name__}.{hint}")
    for number, item in enumerate(data, start=1):
        yield _object(item, f"{path}: row {number}")


def _csv(path: Path, source: FileSource) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD)
    place = Place(path)
    with reading(place, DomainError, _MEND), _open_text(path) as file:
        lines = csv.reader(_counted(file, place), strict=True)
        names = next(lines, [])
        _check_text("".join(names))
        for values in filter(None, lines):
            if len(values) != len(names):
                raise DomainError(f"{place}: the row has not the {len(names)} values of the first line.")
            _check_text("".join(values))
            yield dict(zip(names, values, strict=True))


def _counted(file: TextIO, place: Place) -> Iterator[str]:
    for place.line, line in enumerate(file, start=1):
        yield line


def _parquet(path: Path, source: FileSource) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    faults = (pyarrow.ArrowException, *LIBRARY_FAULTS)
    with reading(path, DomainError, "It is no whole Parquet file, or holds what Python cannot.", faults):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else None
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data) if data is not None else path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()


_READERS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}
