"""The parts of a diagnosis, each in one JSON file: done once for the same inputs, and kept when another part fails."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.diagnosis.results import to_json
from counterpoint.errors import CounterpointError, RunError
from counterpoint.models import is_out_of_memory
from counterpoint.runs.records import CHECKSUM, AnyObject, read_json, write_checked

BLOCKS = 64
"""Blocks read of every file of weights for its fingerprint."""

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One analysis: its file is ``NAME.json`` of schema ``counterpoint.diagnosis.KIND``.

    ``inputs`` are what its result depends on, as JSON values. ``work`` returns the result, a dataclass. ``about`` goes
    into ``summary.json`` with the part: its domains, its step.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]
    work: Callable[[], Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    beside: tuple[Path, ...] = ()
    """Files that it writes too; where one is gone or changed the part is done again."""


@dataclass(frozen=True)
class PartDone:
    """How a part went: ``status`` is ``done``, ``kept`` (it was there already) or ``failed`` with ``reason``."""

    name: str
    kind: str
    file: str
    status: str
    seconds: float
    about: Mapping[str, Any]
    reason: str = ""


def run_part(folder: Path, part: Part) -> PartDone:
    """Does ``part``, unless its file holds a result of the same inputs; an older result of other inputs is removed.

    A result that says that it ``stopped`` early, because memory ended, is measured again, and so is one that is
    damaged.

    What a user can mend, and memory that ran out, fails this part alone. Everything else is raised: it is our mistake.
    """
    path = folder / f"{part.name}.json"
    digest = digest_of({"kind": part.kind, **part.inputs})
    found = read_part(path) or {}
    whole = all(file.is_file() for file in part.beside) and found.get("beside") == _beside(part)
    if whole and found.get("inputs") == digest and not found.get("stopped"):
        return PartDone(part.name, part.kind, path.name, "kept", 0.0, part.about)
    started = time.perf_counter()
    path.unlink(missing_ok=True)
    try:
        content = to_json(part.kind, part.work())
    except (CounterpointError, RuntimeError, MemoryError) as error:
        if not isinstance(error, CounterpointError) and not is_out_of_memory(error):
            raise
        reason = str(error) if isinstance(error, CounterpointError) else "Out of memory. Lower --prompts."
        return PartDone(part.name, part.kind, path.name, "failed", time.perf_counter() - started, part.about, reason)
    head = {"schema": content.pop("schema"), "version": content.pop("version"), "inputs": digest}
    write_checked(path, head | content | {"beside": _beside(part)})
    return PartDone(part.name, part.kind, path.name, "done", time.perf_counter() - started, part.about)


def read_part(path: Path) -> dict[str, Any] | None:
    """The result of a part in ``path``; None where there is none, whole and as it was written."""
    with contextlib.suppress(RunError):
        found = read_json(path, AnyObject, "")
        return found if CHECKSUM in found else None
    return None


def _beside(part: Part) -> dict[str, str]:
    return {file.name: file_digest(file) for file in part.beside}


def digest_of(inputs: Mapping[str, Any]) -> str:
    """A short hash of JSON values."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def fingerprint(folder: Path, names: Sequence[str] = ("*.safetensors", "config.json", "adapter_config.json")) -> str:
    """A hash of a model folder: names and sizes of its files, and of each one's content some evenly spaced blocks.

    Training changes weights everywhere, so blocks tell two checkpoints apart without reading them whole.
    """
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(path for name in names for path in folder.glob(name) if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}/{size}\n".encode())
        with path.open("rb") as file:
            for block in range(BLOCKS):
                file.seek(max(0, size - BLOCK_BYTES) * block // (BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """A hash of a file's content; of nothing where it is not there."""
    return hashlib.blake2b(path.read_bytes() if path.is_file() else b"", digest_size=12).hexdigest()
