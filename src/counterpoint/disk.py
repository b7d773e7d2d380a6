"""Writing that a kill or a full disk cannot turn into half a file."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

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


def sync(path: Path) -> None:
    """Returns when the content of a file has reached the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Returns when the names in a folder have reached the disk, where the file system can tell."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)


def take_lock(folder: Path, take: Callable[[int, int], None], held: str) -> int:
    """Opens ``folder / ".lock"`` and locks it with ``take`` (``fcntl.lockf`` or ``flock``), until the process ends.

    On a file system that knows no locks it warns and goes on without one.

    Raises:
        RunError: another process has the lock; ``held`` is the message.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            take(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise RunError(held) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(handle)
                raise
            warnings.warn(
                f"{folder}: this file system knows no locks ({error.strerror}), so nothing keeps a second process from "
                "writing here at the same time. See to it that there is only one.",
                RuntimeWarning,
                stacklevel=3,
            )
    return handle


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


@contextlib.contextmanager
def disk_errors(path: Path, *, around_other_work: bool = False) -> Iterator[None]:
    """Turn an error of the disk under ``path`` into a ``RunError`` that says what to do.

    ``torch.save`` and safetensors raise errors of their own for a full disk; they are known by their wording. Around
    other work, a training say, an ``OSError`` that no disk gives (a lost connection) passes.
    """
    try:
        yield
    except OSError as error:
        if around_other_work and error.errno not in _OF_DISKS:
            raise
        raise _explained(path, error.errno, error.strerror) from error
    except (SafetensorError, RuntimeError) as error:
        if "I/O error" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise _explained(
            path, errno.ENOSPC if "No space" in str(error) else None, str(error).splitlines()[0]
        ) from error


_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def _explained(path: Path, number: int | None, reason: str | None) -> RunError:
    if number in (errno.ENOSPC, errno.EDQUOT):
        remedy = "The disk is full. Free some space"
    elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "It is not writable. Set run.dir to a folder that is"
    else:
        remedy = "Check the disk"
    return RunError(f"{path}: cannot be written ({reason}). {remedy}; `counterpoint train --resume` continues a run.")


def file_digest(path: Path) -> str:
    """A hash of a file's content; of nothing where it is not there."""
    digest = hashlib.blake2b(digest_size=12)
    if path.is_file():
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
