"""Shows a refresh to people: progress, a table, its verdict and its report."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from counterpoint.cli.progress import ConsoleReporter
from counterpoint.launch import rank_of_environment
from counterpoint.report import write_report

if TYPE_CHECKING:
    from counterpoint.diagnosis import Estimate
    from counterpoint.engine import Reporter
    from counterpoint.recovery import Refresh


def with_progress(out: Path, work: "Callable[[Reporter], Refresh]") -> "Refresh":
    """Does ``work`` with progress on the terminal, then prints its table and writes its report."""
    from counterpoint.engine import Interrupted, Reporter

    if rank_of_environment():
        return work(Reporter())
    with ConsoleReporter() as reporter:
        try:
            found = work(reporter)
        except Interrupted as stop:
            reporter.message(f"Saved. Repeat the command to go on, or: counterpoint train --resume {out}")
            raise KeyboardInterrupt from stop
    print_refresh(found)
    Console().print(f"Report: {write_report(out)}", soft_wrap=True, highlight=False, markup=False)
    return found


def print_refresh(found: "Refresh") -> None:
    """Every domain at the start and at the end, then what it means."""
    console = Console()
    table = Table(title="Held-out reward, mean [95 % interval]", title_justify="left")
    for column in ("domain", "start", "end", "change"):
        table.add_column(column, justify="left" if column == "domain" else "right")
    last = found.evaluations[-1].scores
    for name, start in found.start.items():
        table.add_row(name, f"{start.value:.3f}", _cell(last[name]), _cell(found.changes[name], "+"))
    console.print(table)
    checkpoint = [f"Checkpoint: {found.checkpoint}"] if found.checkpoint is not None else []
    for sentence in (found.verdict, *found.notes, *checkpoint):
        console.print(sentence, soft_wrap=True, highlight=False, markup=False)


def _cell(value: "Estimate", sign: str = "") -> str:
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
