"""Writing that a kill or a full disk cannot turn into half a file."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` in place of ``path`` by one rename, after it has reached the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` in place of ``path`` as ``write_bytes`` does, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """Put ``data`` in place of ``path`` as ``write_bytes`` does, as indented JSON."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, *objects: Mapping[str, Any]) -> None:
    """Append one line of JSON for each of ``objects`` and flush it."""
    text = "".join(json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in objects)
    with disk_errors(path), path.open("ab") as file:
        file.write(text.encode())


def check_disk(path: Path, needed_bytes: int = 0) -> None:
    """Refuse a place for a run that cannot be written or has less than ``needed_bytes`` free."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise RunError(f"{path}: {existing} is a file, so no run can be kept below it. Set run.dir to another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"{path}: the folder {existing} is not writable. Set run.dir to one that is.")
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise RunError(
            f"{path}: {_size(free)} are free on this disk and the run needs about {_size(needed_bytes)}. "
            "Free some, lower run.keep, or set run.dir to another disk."
        )


def whole_lines(path: Path) -> list[str]:
    """The lines of ``path`` that end in a line break."""
    *lines, _torn = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [line for line in lines if line.strip()]


def drop_torn_line(path: Path) -> None:
    """Cut off what stands after the last line break; a kill while appending leaves that."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with disk_errors(path):
            os.truncate(path, whole)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk under ``path`` into a ``RunError`` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "The disk is full. Free some space"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "It is not writable. Set run.dir to a folder that is"
        else:
            remedy = "Check the disk"
        raise RunError(
            f"{path}: cannot be written ({error.strerror}). {remedy}; `--resume` continues the run."
        ) from error
