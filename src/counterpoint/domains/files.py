"""Rows of a local file: JSONL, JSON, CSV or Parquet, each also compressed with gzip."""

import csv
import difflib
import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, TextIO

from counterpoint.config.sources import FILE_SUFFIXES, FileSource
from counterpoint.domains.template import Path
from counterpoint.errors import DomainError

Row = dict[str, Any]
_MAX_FIELD = 1 << 30  # characters of one CSV value; Python's own limit is 131072


def read_file(source: FileSource, limit: int | None) -> list[Row]:
    """The first ``limit`` rows of the file.

    Raises:
        DomainError: the file is missing (naming the nearest), unreadable, or malformed (naming the line).
    """
    path = FilePath(source.path)
    if not path.is_file():
        raise DomainError(_missing(path))
    kind = _format(source)
    try:
        rows = list(islice(_READERS[kind](path, source), limit))
    except (OSError, EOFError) as error:
        raise DomainError(f"{path}: cannot be read ({error}).") from error
    except UnicodeDecodeError as error:
        raise DomainError(f"{path}: is not text in UTF-8 ({error}). Convert it.") from error
    return rows


def _format(source: FileSource) -> str:
    if source.format != "auto":
        return source.format
    path = FilePath(source.path)
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    if suffix not in FILE_SUFFIXES:
        known = ", ".join(FILE_SUFFIXES)
        raise DomainError(f"{path}: the suffix {suffix!r} tells no format (known: {known}). Set source.format.")
    return FILE_SUFFIXES[suffix]


def _open_text(path: FilePath) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="")


def _jsonl(path: FilePath, source: FileSource) -> Iterator[Row]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")


def _json(path: FilePath, source: FileSource) -> Iterator[Row]:
    with _open_text(path) as file:
        data = _parse(file.read(), str(path))
    if source.field is not None:
        if not isinstance(data, dict):
            raise DomainError(f"{path}: source.field is {source.field!r}, but the file holds no object. Remove it.")
        try:
            data = Path(source.field).get(data)
        except DomainError as error:
            raise DomainError(f"{path}: source.field: {error}") from None
    if not isinstance(data, list):
        lists = [key for key, value in data.items() if isinstance(value, list)] if isinstance(data, dict) else []
        hint = f" Set source.field to one of: {', '.join(lists)}." if lists else " Rows must be a list of objects."
        raise DomainError(f"{path}: expected a list of rows, found {type(data).__name__}.{hint}")
    for number, item in enumerate(data, start=1):
        yield _object(item, f"{path}: row {number}")


def _csv(path: FilePath, source: FileSource) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD)
    with _open_text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    fields = len(reader.fieldnames or ())
                    raise DomainError(
                        f"{path}:{reader.line_num}: the row has not the {fields} values of the first line."
                    )
                yield row
        except csv.Error as error:
            raise DomainError(f"{path}:{reader.reader.line_num}: not valid CSV ({error}).") from None


def _parquet(path: FilePath, source: FileSource) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else None
    try:
        with pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data) if data is not None else path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DomainError(f"{path}: not a Parquet file ({error}).") from None


_READERS = {"jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet}


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise DomainError(f"{where}: not valid JSON ({error.msg}, {place}).") from None


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DomainError(f"{where}: a row must be a JSON object, found {type(value).__name__}.")
    return value


def _missing(path: FilePath) -> str:
    if path.is_dir():
        return f"{path}: is a folder. Give one file."
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: there is no such file, and no folder {folder}. Correct source.path."
    names = [item.name for item in folder.iterdir() if item.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else "correct source.path."
    return f"{path}: there is no such file; {hint}"
