"""Runs the jobs of a study in child processes: as many at a time as asked, each after the jobs it needs."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Protocol

from counterpoint.disk import write_text
from counterpoint.errors import RunError
from counterpoint.masking import masked_data
from counterpoint.study.child import Child
from counterpoint.study.commands import tidy
from counterpoint.study.estimate import seconds_left
from counterpoint.study.folder import JobRecord, Status, StudyFolder
from counterpoint.study.jobs import Job

POLL_S = 0.2
TELL_S = 2.0
"""Seconds between looks at how far the running jobs are, which read their files."""


class Listener(Protocol):
    """Hears how a study goes."""

    def started(self, job: Job) -> None:
        """A job has begun, or goes on."""

    def ended(self, record: JobRecord, done: int, total: int, left_s: float | None) -> None:
        """A job has ended; ``left_s`` is about the time that the others still take."""

    def running(self, jobs: Sequence[Job], done: int, total: int, left_s: float | None) -> None:
        """Called every now and then."""

    def stopping(self) -> None:
        """The user wants to stop; jobs are saving."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of_a_job(parallel: int) -> int:
    """OpenMP threads of each of ``parallel`` processes: the cores shared evenly, at least one."""
    return max(1, cores() // parallel)


def run_jobs(jobs: Sequence[Job], folder: StudyFolder, parallel: int, listener: Listener) -> dict[str, JobRecord]:
    """Runs what is missing of ``jobs``; what is done is not repeated, and what fails does not stop the others.

    Args:
        jobs: with every job that any of them needs.
        folder: the study's folder, locked.
        parallel: processes at a time.
        listener: hears of every job.

    Returns:
        The record of every job.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; running jobs have saved, and the next call goes on with them.
    """
    return _Schedule(jobs, folder, parallel, listener).execute()


class _Schedule:
    def __init__(self, jobs: Sequence[Job], folder: StudyFolder, parallel: int, listener: Listener) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.folder, self.parallel, self.listener = folder, parallel, listener
        found = {job.id: folder.record(job.id) for job in jobs}
        self.records = {name: record for name, record in found.items() if record and record.status == "done"}
        self.waiting = [job for job in jobs if job.id not in self.records]
        self.children: list[Child] = []
        self._told = -TELL_S

    def execute(self) -> dict[str, JobRecord]:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self.waiting or self.children:
                self._start_ready()
                self._tell()
                time.sleep(POLL_S)
                self._reap()
        except KeyboardInterrupt:
            self._stop()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)
        return self.records

    def _start_ready(self) -> None:
        for job in list(self.waiting):
            broken = [need for need in job.needs if need in self.records and self.records[need].status != "done"]
            if broken:
                self.waiting.remove(job)
                self._end(self._record(job, "failed", None, f"needs {broken[0]}, which failed"))
            elif len(self.children) < self.parallel and all(need in self.records for need in job.needs):
                self.waiting.remove(job)
                self._start(job)

    def _start(self, job: Job) -> None:
        write_text(self.folder.config(job.id), job.config.to_yaml())
        self.folder.write_record(self._record(job, "running"))
        self.listener.started(job)
        self.children.append(Child(job, self.folder, threads_of_a_job(self.parallel)))

    def _reap(self) -> None:
        for child in list(self.children):
            try:
                ended = child.poll()
            except RunError as error:  # what an earlier job left is gone
                ended, child.reason = True, str(error)
            if not ended:
                continue
            self.children.remove(child)
            if not child.reason and child.job.trains:
                tidy(child.job, self.folder)
            self._end(self._record(child.job, "failed" if child.reason else "done", child, child.reason))

    def _end(self, record: JobRecord) -> None:
        self.records[record.id] = record
        self.folder.write_record(record)
        self.listener.ended(record, len(self.records), len(self.jobs), self._left())

    def _record(self, job: Job, status: Status, child: Child | None = None, reason: str = "") -> JobRecord:
        """What is noted of a job: its seconds are added to those of earlier attempts."""
        before = self.folder.record(job.id)
        seconds = (before.seconds if before else 0.0) + (child.seconds if child else 0.0)
        settings = masked_data(job.settings.model_dump(mode="json"))
        return JobRecord(job.id, job.row, job.seed, job.domain, status, seconds, reason, settings)

    def _tell(self) -> None:
        if time.monotonic() - self._told < TELL_S:
            return
        self._told = time.monotonic()
        self.listener.running([child.job for child in self.children], len(self.records), len(self.jobs), self._left())

    def _left(self) -> float | None:
        running = {child.job.id: child.seconds for child in self.children}
        return seconds_left(self._unfinished(), running, self.records, self.jobs, self.folder, self.parallel)

    def _unfinished(self) -> list[Job]:
        return [*self.waiting, *(child.job for child in self.children)]

    def _stop(self) -> None:
        """Asks every child to save and waits for it; asked again, ends them at once."""
        self.listener.stopping()
        for child in self.children:
            child.send(signal.SIGTERM)
        try:
            for child in self.children:
                child.wait()
        except KeyboardInterrupt:
            for child in self.children:
                child.send(signal.SIGKILL)
        for child in self.children:
            child.wait()
            self.folder.write_record(self._record(child.job, "interrupted", child))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def failed(records: Mapping[str, JobRecord]) -> list[JobRecord]:
    """The records of jobs that failed."""
    return [record for record in records.values() if record.status == "failed"]
