"""The folder of a study: what was asked, what each job left, and a lock.

::

    studies/NAME/  study.yaml (resolved)   study.json  study.md  study.html
                   configs/JOB.yaml        what each job runs with
                   jobs/JOB.json           how it went
                   logs/JOB.log            what it printed
                   runs/JOB/               a run directory, or a checkpoint and its scores.jsonl
"""

import fcntl
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import Field

from counterpoint.disk import take_lock, write_json
from counterpoint.runs.records import Number, Record, Row, read_as

Status = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class JobRecord:
    """How a job went. ``seconds`` counts all its attempts; ``reason`` says why it failed."""

    id: str
    row: str
    seed: int | None
    domain: str
    status: Status
    seconds: float = 0.0
    reason: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


class _Job(Record):
    id: str
    row: str
    seed: int | None
    domain: str
    status: Status
    seconds: Number = 0.0
    reason: str = ""
    settings: Row = Field(default_factory=dict)


class StudyFolder:
    """One study on disk. A context manager that keeps other processes from running the same study."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.path / "runs"

    def run(self, job: str) -> Path:
        """The folder of one job's run."""
        return self.runs / job

    def config(self, job: str) -> Path:
        """The configuration that a job runs with."""
        return self.path / "configs" / f"{job}.yaml"

    def log(self, job: str) -> Path:
        """What a job printed, all attempts one after another."""
        return self.path / "logs" / f"{job}.log"

    def record(self, job: str) -> JobRecord | None:
        """How a job went; None where it never started.

        Raises:
            RunError: the record cannot be read.
        """
        path = self.path / "jobs" / f"{job}.json"
        if not path.exists():
            return None
        return read_as(path, _Job, "Remove it, and the job runs again.", lambda row: JobRecord(**row))

    def write_record(self, record: JobRecord) -> None:
        """Note how a job went."""
        write_json(self.path / "jobs" / f"{record.id}.json", asdict(record))

    @property
    def lock_handle(self) -> int:
        """The open lock file. Children that inherit it hold the lock too, should they outlive this process."""
        assert self._lock is not None
        return self._lock

    def __enter__(self) -> Self:
        held = (
            f"{self.path}: another process is running this study, or runs of one that was killed are still going. Wait "
            "for them, or stop them first."
        )
        self._lock = take_lock(self.path, fcntl.flock, held)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
