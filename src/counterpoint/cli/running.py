"""Runs training for people: quiet libraries, progress, a table and the report at the end."""

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from counterpoint.cli.progress import ConsoleReporter
from counterpoint.cli.tables import print_run_table
from counterpoint.config import Config
from counterpoint.report import write_report
from counterpoint.runs import RunDirectory


def train_config(config: Config, name: str) -> RunDirectory:
    """Trains ``config`` with progress on the terminal, prints its table and writes its report."""
    from counterpoint.training import train

    return _with_progress(lambda reporter: train(config, name, reporter))


def resume_run(path: Path) -> RunDirectory:
    """Continues the run at ``path`` in the same manner."""
    from counterpoint.training import resume

    return _with_progress(lambda reporter: resume(path, reporter))


def _with_progress(work: Callable[[ConsoleReporter], RunDirectory]) -> RunDirectory:
    from counterpoint.training import Interrupted

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
