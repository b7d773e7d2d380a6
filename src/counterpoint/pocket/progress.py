"""Progress of a build: bars with the time left on a terminal, plain lines elsewhere."""

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_EVERY = 100
"""Steps between plain lines."""


class BuildProgress:
    """Shows the steps of each stage; a context manager around the build. ``step`` is what the build reports to."""

    def __init__(self, console: Console, stages: Sequence[tuple[str, int]]) -> None:
        """``stages``: name and number of steps of each stage, in their order."""
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bars = {
            name: self._progress.add_task(name, total=steps, loss=float("nan"), start=False) for name, steps in stages
        }

    def __enter__(self) -> "BuildProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, stage: str, done: int, total: int, loss: float) -> None:
        """Shows that ``done`` of ``total`` steps of a stage are done, the last with this loss."""
        if done == 1:
            self._progress.start_task(self._bars[stage])
        self._progress.update(self._bars[stage], completed=done, loss=loss)
        if not self.console.is_terminal and (done % PLAIN_EVERY == 0 or done == total):
            self.console.print(f"{stage} {done}/{total}, loss {loss:.3f}")
