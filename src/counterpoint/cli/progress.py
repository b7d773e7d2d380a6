"""Progress on a terminal as bars with rewards and time left; plain lines where there is no terminal."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from counterpoint.runs import Reporter

if TYPE_CHECKING:
    from counterpoint.evaluation import DomainScore

PLAIN_EVERY_S = 10.0
"""Seconds between plain lines."""


class ConsoleReporter(Reporter):
    """A reporter for people; a context manager around the work it shows."""

    def __init__(self, console: Console | None = None, label: str = "") -> None:
        self.console = console or Console()
        self.label = f"{label} " if label else ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._task_name = ""
        self._last_plain = 0.0
        self._started = time.monotonic()
        self._first_step: int | None = None

    def __enter__(self) -> "ConsoleReporter":
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def message(self, text: str) -> None:
        """Prints one line."""
        self.console.print(escape(text), soft_wrap=True, highlight=False)

    def evaluating(self, when: str, domain: str, done: int, total: int) -> None:
        """Moves the bar of one domain's evaluation."""
        self._show(f"{self.label}evaluate {when}: {domain}", done, total, "")

    def evaluated(self, when: str, step: int, scores: "Sequence[DomainScore]") -> None:
        """Prints the scores of an evaluation."""
        text = "  ".join(f"{s.domain} {s.mean:.3f} [{s.low:.3f}, {s.high:.3f}]{_parts(s)}" for s in scores)
        self.message(f"{self.label}step {step}, {when}: {text}")

    def training(self, step: int, total: int, metrics: Mapping[str, Any]) -> None:
        """Moves the bar of training, rewards per domain beside it."""
        rewards = {key.split("/")[1]: value for key, value in metrics.items() if _is_reward(key, value)}
        note = "  ".join(f"{name} {value:.2f}" for name, value in rewards.items())
        self._show(f"{self.label}train", step, total, note)

    def working(self, what: str, done: int, total: int) -> None:
        """Moves the bar of any other work; the ``on_progress`` of an analysis."""
        self._show(f"{self.label}{what}", done, total, "")

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if self.console.is_terminal:
            self._show_bar(name, done, total, note)
        else:
            self._show_line(name, done, total, note)

    def _show_bar(self, name: str, done: int, total: int, note: str) -> None:
        if name != self._task_name:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._task_name = self._progress.add_task(name, total=total, note=note), name
            # a resumed run starts in the middle: what was done before must not count for the time left
            self._progress.reset(self._task, completed=max(0, done - 1), note=note)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total, note=note)

    def _show_line(self, name: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if name != self._task_name:
            self._task_name, self._started, self._first_step = name, now, done
        if now - self._last_plain < PLAIN_EVERY_S and done != total:
            return
        self._last_plain = now
        covered = done - (self._first_step or 0)
        left = (
            f", {(now - self._started) / covered * (total - done):.0f} s left" if covered > 0 and done < total else ""
        )
        self.console.print(
            f"{name} {done}/{total}{left}  {note}".rstrip(), soft_wrap=True, highlight=False, markup=False
        )


def _parts(score: "DomainScore") -> str:
    """What the reward's functions gave, and how many completions none of them scored."""
    said = [f"{name} {'-' if mean is None else f'{mean:.3f}'}" for name, mean in score.parts.items()]
    said += [f"{score.unscored} not scored"] if score.unscored else []
    return f" ({', '.join(said)})" if said else ""


def _is_reward(key: str, value: Any) -> bool:
    return key.startswith("reward/") and key.count("/") == 1 and isinstance(value, float)
