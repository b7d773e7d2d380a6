"""What a study runs: one job per row and seed (and domain, for experts), and the folder that keeps them.

::

    studies/NAME/  study.yaml (resolved)   study.json  study.md  study.csv  study.tex  study.html
                   planned.json            the contrasts that were planned when the first run started
                   configs/JOB.yaml        what each job runs with
                   jobs/JOB.json           how it went
                   logs/JOB.log            what it printed
                   runs/JOB/               a run directory, or a checkpoint and its scores.jsonl
"""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import Field

from counterpoint.config import Config, load_config
from counterpoint.disk import take_lock, write_json
from counterpoint.errors import CounterpointError, RunError
from counterpoint.masking import masked_data
from counterpoint.runs.records import Number, Record, read_as
from counterpoint.study.load import Study, is_shown_only
from counterpoint.study.schema import (
    KINDS,
    Contrast,
    ExpertsRow,
    GivenRow,
    MergeRow,
    RefreshRow,
    RollbackRow,
    Row,
    TrainRow,
)

Status = Literal["running", "done", "failed", "interrupted"]
_WORDS_ONLY = {"description", "seeds", "set", "strategy", "orders", "steps"}
"""Keys of a row that change no model, or do it through the configuration."""


@dataclass(frozen=True)
class Job:
    """One model of a study: trained, made or given, and evaluated on all domains.

    Attributes:
        id: also the name of its folder.
        seed: None for a row that is one model for all seeds.
        domain: the expert's; empty elsewhere.
        needs: ids of the jobs whose models this one is made of.
    """

    id: str
    row: str
    seed: int | None
    domain: str
    settings: Row
    config: Config
    needs: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it is a plain training run."""
        return isinstance(self.settings, TrainRow | ExpertsRow)


def plan_jobs(study: Study, runs: Path) -> list[Job]:
    """Every job of ``study``, those of the first seed first, so that a study cut short compares what it has.

    Args:
        study: the study.
        runs: the folder of its runs.
    """
    jobs = [job for name in study.rows for job in _jobs_of(study, name, runs)]
    order = {seed: index for index, seed in enumerate(study.config.seeds)}
    return sorted(jobs, key=lambda job: -1 if job.seed is None else order.get(job.seed, len(order)))


def _job_id(row: str, seed: int | None, domain: str = "") -> str:
    """The name of a job and of its folder."""
    return "-".join([row, *([domain] if domain else []), *([] if seed is None else ["seed", str(seed)])])


def _jobs_of(study: Study, name: str, runs: Path) -> Iterator[Job]:
    row = study.rows[name]
    for index, seed in enumerate((None,) if is_shown_only(row) else study.seeds(name)):
        settings = row
        if isinstance(row, GivenRow) and isinstance(row.path, list):
            settings = row.model_copy(update={"path": row.path[index]})
        for domain in study.domains if isinstance(row, ExpertsRow) else ("",):
            identity = _job_id(name, seed, domain)
            config = _named(study.configs[name, domain], identity, seed, runs)
            yield Job(identity, name, seed, domain, settings, config, tuple(_needs(study, row, seed)))


def _needs(study: Study, row: Row, seed: int | None) -> Iterator[str]:
    if isinstance(row, MergeRow):
        for domain in study.domains:
            yield _job_id(row.of, seed, domain)
    elif isinstance(row, RefreshRow | RollbackRow):
        yield _job_id(row.of, seed)


def _named(config: Config, identity: str, seed: int | None, runs: Path) -> Config:
    update = {"dir": str(runs), "name": identity} | ({} if seed is None else {"seed": seed})
    return config.model_copy(update={"run": config.run.model_copy(update=update)})


class JobRecord(Record):
    """How a job went. ``seconds`` counts all its attempts; ``reason`` says why it failed."""

    id: str
    row: str
    seed: int | None
    domain: str
    status: Status
    seconds: Number = 0.0
    reason: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    needs: list[str] = Field(default_factory=list)


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
        return read_as(path, JobRecord, "Remove it, and the job runs again.", JobRecord.model_validate)

    def write_record(self, record: JobRecord) -> None:
        """Note how a job went."""
        write_json(self.path / "jobs" / f"{record.id}.json", record.model_dump())

    def keep_plan(self, contrasts: Sequence[Contrast]) -> None:
        """Notes the planned contrasts where the first run starts, once and for all."""
        if not self._plan.exists() and not any((self.path / "jobs").glob("*.json")):
            write_json(self._plan, {"contrasts": [contrast.model_dump() for contrast in contrasts]})

    def plan(self) -> list[Contrast] | None:
        """The contrasts that were planned when the first run started; None where nobody noted them.

        Raises:
            RunError: they cannot be read.
        """
        if not self._plan.exists():
            return None
        return read_as(self._plan, Record, "", lambda row: [Contrast(**one) for one in row["contrasts"]])

    @property
    def _plan(self) -> Path:
        return self.path / "planned.json"

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


def check_unchanged(jobs: Sequence[Job], folder: StudyFolder) -> None:
    """Refuses to go on where a job that has started would now run with other settings.

    Raises:
        RunError: which keys of which jobs have changed, and what to do.
    """
    lines = []
    for job in jobs:
        record = folder.record(job.id)
        if record is not None and (changes := list(_changes(job, folder, record))):
            lines.append(f"  {job.id}: {'; '.join(changes)}")
    if lines:
        raise RunError(
            f"{folder.path}: settings have changed since these were run:\n" + "\n".join(lines) + "\nUndo the change, "
            "give the row another name, or the study (its key `name`, or --name) for an altogether new one."
        )


def _changes(job: Job, folder: StudyFolder, record: JobRecord) -> Iterator[str]:
    try:
        before = load_config(folder.config(job.id))
    except CounterpointError as error:
        yield f"its configuration cannot be read any more ({error})"
        return
    yield from _differences(_plain(before), _plain(job.config))
    yield from _differences(_row(KINDS[record.settings["kind"]].model_validate(record.settings)), _row(job.settings))


def _plain(config: Config) -> dict[str, Any]:
    """What shapes a run: all but the folder of the runs, which may have been moved."""
    return config.model_dump(mode="json", exclude={"run": {"dir"}})


def _row(row: Row) -> dict[str, Any]:
    plain: dict[str, Any] = masked_data(row.model_dump(mode="json", exclude=_WORDS_ONLY))
    return plain


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield f"{path} was {before!r} and is {now!r}"
