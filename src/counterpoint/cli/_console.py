"""What every command needs: quiet libraries, a configuration, progress on the terminal, and one rank that speaks."""

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
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

from counterpoint.errors import CounterpointError, RunError
from counterpoint.launch import rank_of_environment
from counterpoint.runs import Reporter

if TYPE_CHECKING:
    from counterpoint.config import Config
    from counterpoint.evaluation import DomainScore
    from counterpoint.results import Result

SILENCE_S = 10.0
"""Seconds that other ranks wait before they tell of an error; a launcher ends them in a fraction of one."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it."""

PLAIN_EVERY_S = 10.0
"""Seconds between plain lines."""

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one key of the file. Repeatable.")
]


def quiet_libraries(*, offline: bool = False) -> None:
    """Leaves the terminal to counterpoint's own progress; warnings of libraries about their internals are not shown.

    Args:
        offline: also keep Hugging Face libraries from asking a hub anything.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|torch|accelerate)\b")
    warnings.filterwarnings("ignore", message=r".*pin_memory.*")
    logging.getLogger("trl").setLevel(logging.ERROR)


def load(path: Path, overrides: Sequence[str] | None = None) -> "Config":
    """The configuration in ``path``, what stands under ``training`` checked by the installed TRL."""
    from counterpoint.config import load_config

    return load_config(path, overrides or (), setting_findings)


def setting_findings(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and message of everything under ``training`` that ``trl.GRPOConfig`` cannot use."""
    from counterpoint.training.values import setting_findings

    return setting_findings(training)


def numbers(option: str, text: str) -> tuple[float, ...]:
    """``0.01,0.1`` as numbers; percentages such as ``1%`` too."""
    try:
        return tuple(float(part.strip().removesuffix("%")) / (100 if "%" in part else 1) for part in text.split(","))
    except ValueError:
        raise CounterpointError(f"{option} {text}: write numbers with commas between them, e.g. 0.01,0.1.") from None


@contextmanager
def progress(
    saved: str = "Continue with: counterpoint train --resume {}", label: str = ""
) -> Iterator["ConsoleReporter"]:
    """Shows the progress of what is done inside, on the first rank of a launch; the others are silent.

    After Ctrl-C ``saved`` says how to go on with the run, whose path it may name.
    """
    with one_rank_speaks(), ConsoleReporter(label=label) as reporter:
        try:
            yield reporter
        except KeyboardInterrupt as stop:
            run = getattr(stop, "run", None)
            if run is None:
                raise
            reporter.message(f"Saved. {saved.format(run.path)}")
            raise KeyboardInterrupt from stop


@contextmanager
def one_rank_speaks() -> Iterator[None]:
    """Lets the first rank of a launch tell what went wrong, once.

    An error that all ranks meet is told by the first one, and the launcher ends the others while they still hold their
    tongues. What only another rank has met, it tells when that time is over; a rank that merely lost its partner in a
    collective leaves the telling to the partner.
    """
    rank = rank_of_environment()
    try:
        yield
    except CounterpointError:
        if rank:
            time.sleep(SILENCE_S)
        raise
    except KeyboardInterrupt:
        if rank:
            raise SystemExit(INTERRUPTED) from None
        raise
    except RuntimeError as error:
        if not _lost_partner(error):
            raise
        time.sleep(SILENCE_S)
        raise RunError("Another process of this launch has stopped; its own message says why.") from error


def _lost_partner(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone, by the wording of gloo and NCCL."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


class ConsoleReporter(Reporter):
    """A reporter for people; a context manager around the work it shows. Only the first rank ``speaks``."""

    def __init__(self, console: Console | None = None, label: str = "") -> None:
        self.speaks = rank_of_environment() == 0
        self.console = console or Console(quiet=not self.speaks)
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
            disable=not self.speaks,
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

    def show(self, found: "Result") -> None:
        """Prints a result."""
        self.console.print(found, highlight=False)

    def report(self, run: Path) -> None:
        """Writes the report on ``run``, on the first rank alone, and says where it is."""
        from counterpoint.report import write_report

        if self.speaks:
            self.message(f"Report: {write_report(run)}")

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

    def working(self, what: str, done: int, total: int, note: str = "") -> None:
        """Moves the bar of any other work; the ``on_progress`` of an analysis."""
        self._show(f"{self.label}{what}", done, total, note)

    def _show(self, name: str, done: int, total: int, note: str) -> None:
        if not self.speaks:
            return
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
    """What the reward's functions gave, how many completions none of them scored, and what the metrics gave."""
    said = [f"{name} {'-' if mean is None else f'{mean:.3f}'}" for name, mean in score.parts.items()]
    said += [f"{score.unscored} not scored"] if score.unscored else []
    said += [f"{score.reward_cut} cut for the reward model"] if score.reward_cut else []
    said += [f"metric {name} {'-' if mean is None else f'{mean:.3f}'}" for name, mean in score.metrics.items()]
    return f" ({', '.join(said)})" if said else ""


def _is_reward(key: str, value: Any) -> bool:
    return key.startswith("reward/") and key.count("/") == 1 and isinstance(value, float)
