"""What the suite found, for people and for programs."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .case import EXACT
from .controls import FACTOR
from .measure import Measured
from .runner import Outcome, Report
from .simulation import RANKS, filed_cosines

WIDTH = 118
"""Characters of the tables where there is no terminal to fit."""

QUANTITIES = ("gradients", "Grams", "weights", "parameters")

ROUNDED = "~"
"""Marks errors that are compared with another tolerance than the column's."""

SHOWN = 6
"""Names of cases that were not run, for each reason."""

SIMULATED = (0.0, -0.5, -0.9)
"""True cosines of the simulation that is printed."""

_STYLES = {"held": "green", "failed": "bold red", "not run": "dim"}


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints the cases with their errors, the planted bugs with theirs, and one sentence."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    if report.cases:
        console.print(_case_table(report))
    if any(outcome.status != "not run" for outcome in report.controls):
        console.print(_control_table(report.controls))
        console.print(simulation_text(), highlight=False)
    console.print(not_run_text([*report.cases, *report.controls]), highlight=False, end="")
    for outcome in report.failed:
        console.print(f"[bold red]{outcome.name}[/]: {outcome.note or 'beyond its tolerance, see the table'}")
    console.print(sentence(report), style="bold green" if not report.failed else "bold red", highlight=False)


def sentence(report: Report) -> str:
    """The outcome in one sentence."""
    run = [outcome for outcome in report.cases if outcome.status != "not run"]
    left = len(report.cases) - len(run)
    held = sum(outcome.status == "held" for outcome in run)
    planted = [outcome for outcome in report.controls if outcome.status != "not run"]
    seen = sum(outcome.status == "held" for outcome in planted)
    return (
        f"{'Not exact' if report.failed else 'Exact'} on {place(report)}: {held} of {len(run)} cases held"
        f"{f' ({left} not run)' if left else ''}, "
        f"{f'{seen} of {len(planted)} planted bugs were seen, ' if planted else ''}in {report.seconds:.0f} s."
    )


def not_run_text(outcomes: Iterable[Outcome]) -> str:
    """The cases that were not run, by reason."""
    by_reason: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status == "not run":
            by_reason.setdefault(outcome.note, []).append(outcome.name)
    return "".join(f"Not run, {reason}: {_some(names)}.\n" for reason, names in by_reason.items())


def _some(names: list[str]) -> str:
    shown = "; ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown}; and {len(names) - SHOWN} more"


def place(report: Report) -> str:
    """``2 ranks, cpu, float32``."""
    world = report.world
    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return f"{world.size} rank{'s' * (world.size > 1)}, {name}, {str(world.dtype).removeprefix('torch.')}"


def simulation_text() -> str:
    """What happens to cosines with 8 ranks, in one line."""
    shown = [(true, filed_cosines(true)) for true in SIMULATED]
    true = ", ".join(f"{cosine:+.1f}" for cosine, _ in shown)
    by_each_rank = ", ".join(f"{cosines.by_each_rank:+.2f}" for _, cosines in shown)
    by_domain = ", ".join(f"{cosines.by_domain:+.2f}" for _, cosines in shown)
    return (
        f"Simulated: with {RANKS} ranks that each file the mean of all under their own domain, true cosines of {true} "
        f"between two domains are measured as {by_each_rank}; filed by domain, as {by_domain}."
    )


def report_json(report: Report) -> dict[str, Any]:
    """The report as JSON data."""
    world = report.world
    return {
        "exact": not report.failed,
        "ranks": world.size,
        "device": str(world.device),
        "dtype": str(world.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "seconds": round(report.seconds, 2),
        "cases": [_outcome_json(outcome) for outcome in report.cases],
        "planted_bugs": [_outcome_json(outcome) for outcome in report.controls],
    }


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "what": outcome.what,
        "status": outcome.status,
        "note": outcome.note,
        "seconds": round(outcome.seconds, 3),
        "errors": {
            # JSON has neither infinity nor nan
            quantity: {
                "error": one.error if math.isfinite(one.error) else str(one.error),
                "tolerance": one.tolerance,
            }
            for quantity, one in outcome.errors.items()
        },
    }


def _case_table(report: Report) -> Table:
    usual = EXACT[report.world.dtype]
    table = Table(title=f"Exactness on {place(report)}: relative errors", title_justify="left")
    table.add_column("case", no_wrap=True)
    table.add_column("")
    for quantity in QUANTITIES:
        table.add_column(f"{quantity}\n<= {getattr(usual, quantity.lower()):.0e}", justify="right", no_wrap=True)
    table.add_column("same bits\non all ranks", justify="right")
    table.add_column("seconds", justify="right")
    rounded = False
    for outcome in report.cases:
        if outcome.status != "not run":
            cells = [_error(outcome, quantity, getattr(usual, quantity.lower())) for quantity in QUANTITIES]
            rounded = rounded or any(ROUNDED in cell for cell in cells)
            table.add_row(outcome.name, _status(outcome), *cells, _copies(outcome), _seconds(outcome))
    if rounded:
        table.caption = f"{ROUNDED} rounded to bfloat16 on purpose, with a tolerance of its own"
        table.caption_justify = "left"
    return table


def _control_table(outcomes: Iterable[Outcome]) -> Table:
    table = Table(
        title=f"Planted bugs and what they do (seen: more than {FACTOR} times the tolerance)", title_justify="left"
    )
    for header in ("planted bug", "", "what is off", "error", "tolerance", "what was done"):
        table.add_column(header, justify="right" if header in ("error", "tolerance") else "left")
    for outcome in (one for one in outcomes if one.status != "not run"):
        status = {"held": "[green]seen[/]", "failed": "[bold red]not seen[/]"}.get(outcome.status, _status(outcome))
        left, right = (outcome.name, status), outcome.what
        for quantity, one in outcome.errors.items() or [("", None)]:
            table.add_row(*left, *_off(quantity, one), right)
            left, right = ("", ""), ""
    return table


def _off(quantity: str, one: Measured | None) -> tuple[str, str, str]:
    if one is None:
        return "", "", ""
    if quantity == "refused":
        return "", "refused" if one.error else "accepted", ""
    return quantity, f"{one.error:.1e}", f"{one.tolerance:.0e}"


def _status(outcome: Outcome) -> str:
    return f"[{_STYLES[outcome.status]}]{outcome.status}[/]"


def _error(outcome: Outcome, quantity: str, usual: float) -> str:
    one = outcome.errors.get(quantity)
    if one is None:
        return ""
    text = f"{one.error:.1e}" if one.tolerance == usual else f"{ROUNDED} {one.error:.1e}"
    return text if one.held else f"[bold red]{text}[/]"


def _copies(outcome: Outcome) -> str:
    one = outcome.errors.get("copies")
    if one is None:
        return ""
    return "yes" if one.held else f"[bold red]no ({one.error:.0f})[/]"


def _seconds(outcome: Outcome) -> str:
    return f"{outcome.seconds:.1f}" if outcome.seconds else ""
