"""Runs training for people: quiet libraries, progress, a table and the report at the end."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.cli.progress import ConsoleReporter
from counterpoint.cli.tables import print_run_table
from counterpoint.config import Config
from counterpoint.errors import CounterpointError, RunError
from counterpoint.launch import rank_of_environment
from counterpoint.report import write_report
from counterpoint.runs import RunDirectory

if TYPE_CHECKING:
    from counterpoint.engine import Reporter


SILENCE_S = 10.0
"""Seconds that other ranks wait before they tell of an error; a launcher ends them in a fraction of one."""

INTERRUPTED = 130


def train_config(config: Config, name: str) -> RunDirectory:
    """Trains ``config`` with progress on the terminal, prints its table and writes its report."""
    from counterpoint.engine import train

    return _with_progress(lambda reporter: train(config, name, reporter))


def resume_run(path: Path, longer: Sequence[str] = ()) -> RunDirectory:
    """Continues the run at ``path`` in the same manner; a refresh goes on with its own result.

    ``longer`` holds the settings that make a finished run longer.
    """
    from counterpoint.engine import resume

    if not longer and "refresh" in RunDirectory.open(path, write=False).state:
        return _resume_refresh(path)
    return _with_progress(lambda reporter: resume(path, reporter, longer=longer))


def _resume_refresh(path: Path) -> RunDirectory:
    from counterpoint.cli.refreshing import with_progress
    from counterpoint.recovery import continue_refresh

    with_progress(path, lambda reporter: continue_refresh(path, reporter))
    return RunDirectory.open(path, write=False)


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


def _with_progress(work: "Callable[[Reporter], RunDirectory]") -> RunDirectory:
    if rank_of_environment():
        from counterpoint.engine import Reporter

        return work(Reporter())
    return _with_console(work)


def _with_console(work: "Callable[[Reporter], RunDirectory]") -> RunDirectory:
    from counterpoint.engine import Interrupted

    with ConsoleReporter() as reporter:
        try:
            run = work(reporter)
        except Interrupted as stop:
            reporter.message(f"Saved. Continue with: counterpoint train --resume {stop.run.path}")
            raise KeyboardInterrupt from stop
    print_run_table([run])
    reporter.message(f"Report: {write_report(run.path)}")
    return run


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
