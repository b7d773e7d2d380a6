"""Progress of a study: a bar on a terminal, one line for each run that ends."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from counterpoint.study.folder import JobRecord
    from counterpoint.study.jobs import Job

PLAIN_EVERY_S = 300.0
"""Seconds between plain lines while no run ends."""


class StudyProgress:
    """A listener of ``counterpoint.study.run_jobs`` for people; a context manager around the work it shows."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bar = Progress(
            TextColumn("[bold]study"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("study", total=None, note="")
        self._last_plain = time.monotonic()

    def __enter__(self) -> "StudyProgress":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def started(self, job: "Job") -> None:
        """A job has begun; the bar says so."""

    def ended(self, record: "JobRecord", done: int, total: int, left_s: float | None) -> None:
        """Prints one line."""
        how = "done" if record.status == "done" else f"{record.status}: {record.reason}"
        took = f" in {duration(record.seconds)}" if record.status == "done" else ""
        self._line(f"[{done}/{total}] {record.id}: {how}{took}{_left(left_s)}")

    def running(self, jobs: "Sequence[Job]", done: int, total: int, left_s: float | None) -> None:
        """Moves the bar; without a terminal a line now and then."""
        names = ", ".join(job.id for job in jobs)
        if self.console.is_terminal:
            self._bar.update(self._task, completed=done, total=total, note=f"{names}{_left(left_s)}")
        elif time.monotonic() - self._last_plain > PLAIN_EVERY_S:
            self._line(f"[{done}/{total}] running {names}{_left(left_s)}")

    def stopping(self) -> None:
        """Says that running jobs are saved."""
        self._line("Stopping: the running runs save after their step. Press Ctrl-C again to end them at once.")

    def _line(self, text: str) -> None:
        self._last_plain = time.monotonic()
        self.console.print(escape(text), soft_wrap=True, highlight=False)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"; about {duration(seconds)} left"
