"""The parts of a diagnosis, each in one JSON file: done once for the same inputs, and kept when another part fails."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from counterpoint.disk import file_digest, write_json
from counterpoint.errors import CounterpointError, RunError
from counterpoint.models import is_out_of_memory
from counterpoint.results import VERSION, of_plain, plain
from counterpoint.runs.records import CHECKSUM, AnyObject, read_json, write_checked

F = TypeVar("F")

FINDING = "finding"
"""Key of a part's file under which what the summary needs of it is kept."""


@dataclass(frozen=True)
class Part(Generic[F]):
    """One analysis: its file is ``NAME.json`` of schema ``counterpoint.KIND``.

    ``inputs`` are what its result depends on, as JSON values. ``work`` returns the result, ``finding`` what the summary
    needs of it, a dataclass of the type ``read``, which is all that is read of a kept file: whole results hold tensors
    and millions of numbers. ``about`` goes into ``summary.json`` with the part: its domains, its step.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]
    work: Callable[[], Any]
    read: type[F]
    about: Mapping[str, Any] = field(default_factory=dict)
    finding: Callable[[Any], F] = lambda result: result
    beside: tuple[Path, ...] = ()
    """Files that it writes too; where one is gone or changed the part is done again."""


@dataclass(frozen=True)
class PartDone:
    """How a part went: ``done``, ``kept`` (it was there), ``left out`` (not wanted), or ``failed`` with ``reason``."""

    name: str
    kind: str
    about: Mapping[str, Any]
    status: str
    seconds: float = 0.0
    reason: str = ""


def run_part(folder: Path, part: Part[F], wanted: bool = True) -> tuple[PartDone, F | None]:
    """Does ``part`` and returns what it found, unless its file holds a result of the same inputs, or it is not wanted.

    A result that ``stopped`` early or is damaged is measured again. What a user can mend, and memory that ran out,
    fails this part alone; everything else is raised: it is our mistake.
    """
    path, done = folder / f"{part.name}.json", (part.name, part.kind, part.about)
    digest = digest_of({"kind": part.kind, "version": VERSION, **part.inputs})
    if (kept := _kept(path, part, digest)) is not None:
        return PartDone(*done, "kept"), kept
    if not wanted:
        return PartDone(*done, "left out", reason="it was left out."), None
    started = time.perf_counter()
    path.unlink(missing_ok=True)
    try:
        result = part.work()
        found = part.finding(result)
    except (CounterpointError, RuntimeError, MemoryError) as error:
        if not isinstance(error, CounterpointError) and not is_out_of_memory(error):
            raise
        reason = str(error) if isinstance(error, CounterpointError) else "Out of memory. Use fewer prompts."
        return PartDone(*done, "failed", time.perf_counter() - started, reason), None
    head = {"schema": f"counterpoint.{part.kind}", "version": VERSION, "inputs": digest}
    own: dict[str, Any] = plain(result)
    apart = {} if found is result else {FINDING: plain(found)}
    write_checked(path, head | own | {"beside": _beside(part)} | apart)
    return PartDone(*done, "done", time.perf_counter() - started), found


def _kept(path: Path, part: Part[F], digest: str) -> F | None:
    """What the part's file holds, if it is whole, of these inputs, and was not cut short."""
    with contextlib.suppress(CounterpointError):
        found = read_json(path, AnyObject, "")
        whole = CHECKSUM in found and all(file.is_file() for file in part.beside)
        if whole and found.get("beside") == _beside(part) and found.get("inputs") == digest:
            return None if found.get("stopped") else of_plain(part.read, found.get(FINDING, found))
    return None


def _beside(part: Part[Any]) -> dict[str, str]:
    return {file.name: file_digest(file) for file in part.beside}


def digest_of(inputs: Mapping[str, Any]) -> str:
    """A short hash of JSON values."""
    text = json.dumps(inputs, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


WEIGHTS = ("*.safetensors", "config.json", "adapter_config.json")


class Fingerprints:
    """Hashes of model folders, every byte of them; remembered in ``FOLDER/hashes.json``.

    A file is read again when its size or one of its times has changed. The time of its last change of state is one of
    them, which no copy, move or restored modification time leaves as it was.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hashes.json"
        self._known: dict[str, Any] = {}
        with contextlib.suppress(RunError):
            self._known = read_json(self._path, AnyObject, "")

    def of(self, model: Path) -> str:
        """The hash of names and content of a model folder's files."""
        found = {path.name: self._file(path) for name in WEIGHTS for path in sorted(model.glob(name)) if path.is_file()}
        return digest_of(found)

    def _file(self, path: Path) -> str:
        state = path.stat()
        key, mark = str(path.resolve()), [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:-1] == mark:
            return str(known[-1])
        found = file_digest(path)
        self._known[key] = [*mark, found]
        write_json(self._path, self._known)
        return found
