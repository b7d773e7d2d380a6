"""The run directory: written so that a kill at any moment loses at most the step in progress.

Whole files are written beside their place and renamed into it; lines are appended and flushed, and what a kill leaves
after the last seal (``seals``) is cut off when the run is resumed. ``docs/metrics.md`` says what the lines hold.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from counterpoint.disk import append_line, check_disk, disk_errors, take_lock, write_json, write_text
from counterpoint.errors import RunError
from counterpoint.runs.records import LINE_FILES, AnyObject, Record, RunState, read_json, read_lines, write_checked
from counterpoint.runs.seals import Sealer
from counterpoint.runs.stages import Stage

TRACKERS = "trackers"
"""Folder of a run with one folder of TRL's own for each stage."""

CONTINUED = "continued"
"""Beside unfinished checkpoints: the links from which an interrupted stage goes on."""

_PACKAGES = ("counterpoint", "torch", "transformers", "trl", "accelerate", "datasets", "peft", "vllm", "torchjd")
_CHECKPOINT = re.compile(r"step-(0|[1-9][0-9]{0,15})")
_MODEL_FILES = ("config.json", "adapter_config.json")


class _Config(Protocol):
    """What a run needs of a configuration."""

    @property
    def domains(self) -> Mapping[str, Any]: ...

    @property
    def strategy(self) -> Any: ...

    def to_yaml(self) -> str: ...


class RunDirectory:
    """One run on disk, locked against other processes while it is open for writing.

    >>> with RunDirectory.create("runs/pocket-mgs", config) as run:  # doctest: +SKIP
    ...     run.append_metrics({"step": 1, "loss": 0.1})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._sealer: Sealer | None = None

    @classmethod
    def create(
        cls, path: str | Path, config: _Config, needed_bytes: int = 0, facts: Mapping[str, Any] | None = None
    ) -> Self:
        """A new run at ``path`` with its ``config.yaml``, ``environment.json`` and ``run.json``, locked.

        It takes the place of a run that ended before its first step. ``facts`` are further entries of ``run.json``.

        Raises:
            RunError: ``path`` already holds a run or other files, cannot be written, or its disk has less than
                ``needed_bytes`` free. Nothing is overwritten.
        """
        run = cls(Path(path))
        check_place(run.path, needed_bytes)
        with disk_errors(run.path):
            run.path.mkdir(parents=True, exist_ok=True)
        run.lock()
        for name in (*LINE_FILES, "report.html"):
            (run.path / name).unlink(missing_ok=True)
        shutil.rmtree(run.path / TRACKERS, ignore_errors=True)
        write_text(run.path / "config.yaml", config.to_yaml())
        write_json(run.path / "environment.json", environment())
        state = {"strategy": config.strategy.label, "domains": list(config.domains), "status": "running"}
        run._write_state(
            {"name": run.path.name, **state, "started": time.time(), "ended": None, "steps": 0, "stages": []}
            | dict(facts or {})
        )
        return run

    @classmethod
    def open(cls, path: str | Path, *, write: bool = True) -> Self:
        """The run at ``path``; with ``write`` it is locked and what a kill left half written is removed.

        Raises:
            RunError: there is no run at ``path``, or another process is writing it.
        """
        run = cls(Path(path))
        if not (run.path / "run.json").is_file():
            raise RunError(f"{run.path}: there is no run here (no run.json). {_other_runs(run.path)}")
        if write:
            run.lock()
            for unfinished in run.path.glob(".*.tmp"):
                unfinished.unlink()
        return run

    # State

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def state(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return read_json(self.path / "run.json", RunState, "Restore it from a copy, or start a new run.")

    def update(self, **fields: Any) -> None:
        """Replace ``fields`` of ``run.json``."""
        self._write_state(self.state | fields)

    def finish(self, status: str) -> None:
        """Note how the run ended: ``done``, ``interrupted`` or ``failed``."""
        self.update(status=status, ended=time.time())

    def add_environment(self, **facts: Any) -> None:
        """Add ``facts``, such as the name of the GPU, to ``environment.json``."""
        path = self.path / "environment.json"
        known = read_json(path, AnyObject, "Remove it, and it is written anew.") if path.exists() else environment()
        write_json(path, known | facts)

    def _write_state(self, state: Mapping[str, Any]) -> None:
        write_checked(self.path / "run.json", state)

    # Lines

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one optimizer step to ``metrics.jsonl``."""
        append_line(self.path / "metrics.jsonl", line)

    def append_eval(self, line: Mapping[str, Any]) -> None:
        """Append one domain's evaluation to ``evals.jsonl``."""
        append_line(self.path / "evals.jsonl", line)

    def append_samples(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append completions to ``samples.jsonl``."""
        append_line(self.path / "samples.jsonl", *lines)

    def append_grams(self, line: Mapping[str, Any]) -> None:
        """Append one step's inner products to ``grams.jsonl``."""
        append_line(self.path / "grams.jsonl", line)

    def seal(self, step: int) -> dict[str, Any]:
        """What the run's files are now, after ``step``; to be asked once the files only grow."""
        if self._sealer is None:
            self._sealer = Sealer(self.path)
        return self._sealer.seal(step)

    def lines(self, name: str, kind: type[Record] | None = None) -> list[dict[str, Any]]:
        """The objects of ``metrics.jsonl``, ``evals.jsonl`` and the like; none if the file is not there yet.

        Raises:
            RunError: a line is not what the file holds, or not of ``kind``, where more is asked of it.
        """
        path = self.path / name
        remedy = "Restore the file from a copy, or remove the line if it can be missed."
        return read_lines(path, kind or LINE_FILES[name], remedy, growing=True) if path.exists() else []

    # Checkpoints

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint after ``step`` stands."""
        return self.path / "checkpoints" / f"step-{step}"

    def stage_entry(self, stage: Stage) -> dict[str, Any]:
        """The entry of a stage in ``run.json``, with its checkpoint."""
        folder = self.checkpoint_path(stage.last_step).relative_to(self.path)
        return stage.to_json() | {"checkpoint": str(folder)}

    def checkpoint_folders(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint, whole or not, oldest first."""
        folder = self.path / "checkpoints"
        found = [(_CHECKPOINT.fullmatch(item.name), item) for item in (folder.iterdir() if folder.is_dir() else ())]
        return sorted((int(match[1]), item) for match, item in found if match)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint that holds a model, oldest first."""
        return [
            (step, folder)
            for step, folder in self.checkpoint_folders()
            if any((folder / name).is_file() for name in _MODEL_FILES)
        ]

    # TRL's own folders

    def trl_folder(self, stage: int) -> Path:
        """TRL's folder of a stage: what trackers write stays there, checkpoints leave it when they are whole."""
        return self.path / TRACKERS / f"stage-{stage + 1}"

    def clear_unfinished(self) -> None:
        """Removes unfinished checkpoints and TRL's model cards; what trackers wrote stays."""
        trackers = self.path / TRACKERS
        for folder in trackers.glob("stage-*"):
            for unfinished in (*folder.glob("checkpoint-*"), folder / CONTINUED):
                shutil.rmtree(unfinished, ignore_errors=True)
            (folder / "README.md").unlink(missing_ok=True)
        for folder in (*trackers.glob("stage-*"), trackers):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    # Lock

    def lock(self) -> None:
        """Keep other processes from writing this run; the lock ends with the process, however it ends."""
        held = f"{self.path}: another process is writing this run. Wait for it or stop it first."
        self._lock = take_lock(self.path, fcntl.lockf, held)  # unlike flock, not kept by children that outlive us

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bystander(RunDirectory):
    """A run as the ranks see it that do not write it: the same paths, and writing does nothing."""

    def lock(self) -> None:
        """The first rank holds the lock."""

    def add_environment(self, **facts: Any) -> None:
        """Nothing is written."""

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def append_eval(self, line: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def append_samples(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Nothing is written."""

    def append_grams(self, line: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def update(self, **fields: Any) -> None:
        """Nothing is written."""


def environment() -> dict[str, Any]:
    """What the run ran on: versions, machine and command."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def check_place(path: Path, needed_bytes: int) -> None:
    """Refuses a place for a new run that cannot be written, is too small, or holds something.

    A run that made no step may be replaced: nothing is lost with it.

    Raises:
        RunError: naming what is there.
    """
    check_disk(path, needed_bytes)
    run = RunDirectory(path)
    found = sorted(item.name for item in path.iterdir() if item.name != ".lock") if path.is_dir() else []
    if "run.json" in found:
        if run.checkpoint_folders() or run.lines("metrics.jsonl") or run.state["status"] == "done":
            raise RunError(
                f"{path}: already holds a run, which is never overwritten. Continue it with "
                f"`counterpoint train --resume {path}`, or give the new run another run.name."
            )
    elif found:
        raise RunError(f"{path}: is not empty (found {', '.join(found[:3])}). Give the run another run.name.")


def _other_runs(path: Path) -> str:
    runs = sorted(item.parent.name for item in path.parent.glob("*/run.json"))
    return f"Runs in {path.parent}: {', '.join(runs)}." if runs else "Give the path of a run directory."
