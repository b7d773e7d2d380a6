"""Whether what a resumed run reads is what was written.

A checkpoint carries ``manifest.json``: size and hash of each of its files, and a seal of the run's own files as they
were then. ``run.json`` keeps a seal too, renewed by every evaluation that no checkpoint follows. On resumption, what is
sealed must be there unchanged, and what comes after the seal is cut off and written again.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from counterpoint.disk import disk_errors, sync, sync_folder
from counterpoint.errors import RunError
from counterpoint.runs.records import LINE_FILES, Record, Row, Seal, Sealed, Whole, read_json, read_lines, write_checked

MANIFEST = "manifest.json"
CONFIG = "config.yaml"

CHUNK_BYTES = 64 * 2**20
"""Large files are hashed in chunks, side by side."""

_READ_BYTES = 2**20


class Manifest(Record):
    """``manifest.json`` of a checkpoint; ``removed`` names files that were taken away on purpose."""

    step: Whole
    files: dict[str, Sealed]
    removed: list[str]
    run: Seal


# The files of the run


class Sealer:
    """Seals the files of ``run`` again and again while they grow; every byte is read and hashed once."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._hashed = {name: _Hashed() for name in (CONFIG, *LINE_FILES)}

    def seal(self, step: int) -> Row:
        """What the files are now, after ``step``; they have reached the disk."""
        files = {}
        for name, hashed in self._hashed.items():
            if (self.run / name).exists():
                sync(self.run / name)
                files[name] = hashed.up_to_now(self.run / name)
        sync_folder(self.run)
        return {"step": step, "files": files}


class _Hashed:
    """The hash of a growing file as far as it was read."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._bytes = self._lines = 0

    def up_to_now(self, path: Path) -> Row:
        with path.open("rb") as file:
            file.seek(self._bytes)
            while data := file.read(_READ_BYTES):
                self._hash.update(data)
                self._bytes += len(data)
                self._lines += data.count(b"\n")
        return {"bytes": self._bytes, "lines": self._lines, "blake2b": self._hash.hexdigest()}


def empty_seal(seal: Mapping[str, Any] | None) -> Row:
    """The seal of a run before its first line; of ``seal``, a later one, the configuration is kept."""
    files = {} if seal is None else {name: part for name, part in seal["files"].items() if name == CONFIG}
    return {"step": 0, "files": files}


def check_seal(run: Path, seal: Mapping[str, Any]) -> None:
    """Refuses a run whose files are not what they were.

    Raises:
        RunError: naming the file, and the line where it can be told.
    """
    check_config(run, seal)
    for name in LINE_FILES:
        if name in seal["files"]:
            _check_lines(run / name, seal["files"][name], seal["step"])


def check_config(run: Path, seal: Mapping[str, Any]) -> None:
    """Refuses a configuration that is not the one that the run was started with.

    Raises:
        RunError: it was changed, or is gone.
    """
    path = run / CONFIG
    data = path.read_bytes() if path.is_file() else b""
    if CONFIG in seal["files"] and _digest(data) != seal["files"][CONFIG]["blake2b"]:
        raise RunError(
            f"{path}: is not what the run was started with, so it would go on with other numbers. Restore the "
            "file from a copy, or start a new run."
        )


def _check_lines(path: Path, part: Mapping[str, Any], step: int) -> None:
    data = path.read_bytes() if path.is_file() else b""
    if _digest(data[: part["bytes"]]) == part["blake2b"]:
        return
    remedy = "Restore the file from a copy."
    read_lines(path, LINE_FILES[path.name], remedy, growing=True)
    found = data.count(b"\n")
    how = f"{found} lines of the {part['lines']}" if found < part["lines"] else "other lines than those"
    raise RunError(f"{path}: holds {how} that were written up to step {step}. {remedy}")


def cut_to(run: Path, seal: Mapping[str, Any]) -> None:
    """Cuts off the lines that came after ``seal``."""
    for name in LINE_FILES:
        path = run / name
        if path.exists():
            with disk_errors(path):
                os.truncate(path, seal["files"][name]["bytes"] if name in seal["files"] else 0)


# Checkpoints


def write_manifest(folder: Path, step: int, run: Mapping[str, Any]) -> None:
    """Writes the manifest of the checkpoint in ``folder``; all of it has then reached the disk.

    ``run`` is the seal of the run's files. Hashing takes one to two seconds per gigabyte and core.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        sync(path)
    files = {str(path.relative_to(folder)): _described(path) for path in paths}
    write_checked(folder / MANIFEST, {"step": step, "files": files, "removed": [], "run": dict(run)})
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(inner)
    sync_folder(folder)


def move_folder(source: Path, target: Path) -> None:
    """Puts a checkpoint into its place by one rename, which has then reached the disk."""
    source.rename(target)
    sync_folder(target.parent)


def read_manifest(folder: Path) -> Row:
    """The manifest of a checkpoint.

    Raises:
        RunError: there is none, or it is damaged.
    """
    return read_json(folder / MANIFEST, Manifest, "")


def check_checkpoint(folder: Path, step: int) -> Row:
    """The manifest of the checkpoint in ``folder``, whose files are all as they were written.

    Raises:
        RunError: naming what is missing or changed.
    """
    if not (folder / MANIFEST).is_file():
        raise RunError(
            f"{folder}: has no {MANIFEST}, so it is not whole, or was written by a version of counterpoint "
            "that made none."
        )
    manifest = read_manifest(folder)
    for name, part in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise RunError(f"{path}: is missing.")
        if path.stat().st_size != part["bytes"]:
            raise RunError(f"{path}: has {path.stat().st_size:,} bytes and had {part['bytes']:,}.")
        if _described(path) != part:
            raise RunError(f"{path}: was changed since it was written.")
    if manifest["step"] != step:
        raise RunError(f"{folder}: holds the checkpoint after step {manifest['step']}.")
    return manifest


def remove_file(folder: Path, name: str) -> None:
    """Takes a file out of a checkpoint and its manifest, for a run that will not be trained on."""
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        manifest["files"].pop(name, None)
        write_checked(folder / MANIFEST, manifest | {"removed": sorted({*manifest["removed"], name})})
    (folder / name).unlink(missing_ok=True)


def _described(path: Path) -> Row:
    size = path.stat().st_size
    starts = range(0, size, CHUNK_BYTES)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(lambda start: _chunk(path, start), starts)
        return {"bytes": size, "blake2b": _digest(b"".join(parts))}


def _chunk(path: Path, start: int) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        file.seek(start)
        left = CHUNK_BYTES
        while left > 0 and (data := file.read(min(left, _READ_BYTES))):
            found.update(data)
            left -= len(data)
    return found.digest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
