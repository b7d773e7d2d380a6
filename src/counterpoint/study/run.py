"""Runs the jobs of a study in child processes: as many at a time as asked, each after the jobs it needs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from counterpoint.disk import disk_errors, write_text
from counterpoint.errors import RunError
from counterpoint.masking import masked_command, masked_data
from counterpoint.runs import Reporter
from counterpoint.runs.seals import remove_file
from counterpoint.study.jobs import Job, JobRecord, Status, StudyFolder
from counterpoint.study.steps import Step, steps_of

POLL_S = 0.2
LOOK_S = 300.0
"""Seconds between two reports of what is running."""
LONGEST_REASON = 400
TRAIN = (sys.executable, "-m", "counterpoint", "train")
MAKE = (sys.executable, "-P", "-m", "counterpoint.study.child")
_ENVIRONMENT = {
    "COLUMNS": "120",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # of libraries about themselves
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(jobs: Sequence[Job], folder: StudyFolder, parallel: int, reporter: Reporter) -> dict[str, JobRecord]:
    """Runs what is missing of ``jobs``; what is done is not repeated, and what fails does not stop the others.

    Args:
        jobs: with every job that any of them needs.
        folder: the study's folder, locked.
        parallel: processes at a time, which share the cores evenly.
        reporter: hears of every job.

    Returns:
        The record of every job.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; running jobs have saved, and the next call goes on with them.
    """
    return _Schedule(jobs, folder, parallel, reporter).execute()


class _Schedule:
    def __init__(self, jobs: Sequence[Job], folder: StudyFolder, parallel: int, reporter: Reporter) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.folder, self.parallel, self.reporter = folder, parallel, reporter
        found = {job.id: folder.record(job.id) for job in jobs}
        self.records = {name: record for name, record in found.items() if record and record.status == "done"}
        self.waiting = [job for job in jobs if job.id not in self.records]
        self.children: list[_Child] = []
        self._looked = -LOOK_S

    def execute(self) -> dict[str, JobRecord]:
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self.waiting or self.children:
                self._start_ready()
                self._report()
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
        self.children.append(_Child(job, self.folder, max(1, cores() // self.parallel)))

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
                _tidy(child.job, self.folder)
            self._end(self._record(child.job, "failed" if child.reason else "done", child, child.reason))

    def _end(self, record: JobRecord) -> None:
        self.records[record.id] = record
        self.folder.write_record(record)
        how = f"done in {record.seconds:.0f} s" if record.status == "done" else f"{record.status}: {record.reason}"
        self.reporter.message(f"[{len(self.records)}/{len(self.jobs)}] {record.id}: {how}")
        self._looked = -LOOK_S

    def _record(self, job: Job, status: Status, child: "_Child | None" = None, reason: str = "") -> JobRecord:
        """What is noted of a job: its seconds are added to those of earlier attempts."""
        before = self.folder.record(job.id)
        seconds = (before.seconds if before else 0.0) + (child.seconds if child else 0.0)
        settings = masked_data(job.settings.model_dump(mode="json"))
        return JobRecord(
            id=job.id, row=job.row, seed=job.seed, domain=job.domain, status=status, seconds=seconds, reason=reason,
            settings=settings, needs=list(job.needs),
        )  # fmt: skip

    def _report(self) -> None:
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            names = ", ".join(child.job.id for child in self.children)
            self.reporter.working("study", len(self.records), len(self.jobs), names)

    def _stop(self) -> None:
        """Asks every child to save and waits for it; asked again, ends them at once."""
        self.reporter.message("Stopping: the running runs save after their step. Ctrl-C again ends them at once.")
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


def _tidy(job: Job, folder: StudyFolder) -> None:
    """Removes the optimizer's state of a finished run: two thirds of a checkpoint, and of use only to resume."""
    for state in folder.run(job.id).glob("checkpoints/*/optimizer.pt"):
        remove_file(state.parent, state.name)


class _Child:
    """Runs the steps of ``job`` that are not done yet, one process after another.

    ``seconds`` is the wall time so far; ``reason`` says why the job failed, and is empty while it did not.
    """

    def __init__(self, job: Job, folder: StudyFolder, threads: int) -> None:
        self.job, self.folder, self.threads = job, folder, threads
        self.reason = ""
        self._steps = steps_of(job, folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._log_start = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def poll(self) -> bool:
        """Starts the next step if none is running; whether the job has ended."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return False
            self._process = None
            if status != 0:
                self.reason = reason_of(self.folder.log(self.job.id).read_bytes()[self._log_start :], status)
                return True
            if not self._steps.pop(0).is_done():
                self.reason = f"ended without its result; see {self.folder.log(self.job.id)}"
                return True
        while self._steps and self._steps[0].is_done():
            self._steps.pop(0)
        if not self._steps:
            return True
        self._process = self._launch(self._command(self._steps[0]))
        return False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process, if one is running."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self) -> None:
        """Waits for the running process to end."""
        if self._process is not None:
            self._process.wait()

    def _command(self, step: Step) -> list[str]:
        if step.name != "train":
            return [*MAKE, str(self.folder.path), self.job.id, step.name]
        run = self.folder.run(self.job.id)
        if (run / "run.json").is_file():
            return [*TRAIN, "--resume", str(run)]
        if run.exists():  # killed before there was a run
            shutil.rmtree(run)
        return [*TRAIN, str(self.folder.config(self.job.id))]

    def _launch(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = self.folder.log(self.job.id)
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                output.write(f"$ python {' '.join(masked_command(command[1:]))}\n".encode())
                output.flush()
                self._log_start = output.tell()
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_ENVIRONMENT | os.environ | {"OMP_NUM_THREADS": str(self.threads)},
                    pass_fds=(self.folder.lock_handle,),
                    start_new_session=True,  # the terminal's Ctrl-C is for the study, which passes it on
                )


def reason_of(printed: bytes, status: int) -> str:
    """Why a step failed: its own error message, else the last line it printed, else its exit status."""
    if status < 0:
        return f"ended by signal {-status} ({signal.Signals(-status).name})"
    lines = [line.strip() for line in printed.decode(errors="replace").splitlines() if line.strip()]
    errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
    said = " ".join(lines[errors[-1] :]).removeprefix("Error: ") if errors else (lines or [f"exit status {status}"])[-1]
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]}..."
