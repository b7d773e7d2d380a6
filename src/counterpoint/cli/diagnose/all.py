"""``counterpoint diagnose all``: everything that a run's checkpoints allow, and its page in the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.diagnosis.whole_run.parts import PartDone
    from counterpoint.diagnosis.whole_run.results import Summary

PARTIAL = 3
"""Exit status where a part could not be measured and the others are there."""


def everything(
    run: Annotated[Path, typer.Argument(help="Run directory with checkpoints, finished or not, e.g. runs/sequential.")],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Half the prompts and samples; no Adam, no damage up to the end."),
    ] = False,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Also blocks and spectrum of the Hessian, and more scales of the edit."),
    ] = False,
    prompts: Annotated[int, typer.Option(help="Prompts sampled per domain and checkpoint.")] = 128,
    samples: Annotated[int, typer.Option(help="Completions of each prompt.")] = 4,
    alone: Annotated[
        list[str] | None,
        typer.Option("--alone", metavar="DOMAIN=RUN", help="A run that trains DOMAIN alone: to judge rigidity."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the summary there, as JSON.")
    ] = None,
) -> None:
    """Diagnose a run from end to end: behaviour, edits, routes, conflicts, damage, and two sentences per pair.

    Writes RUN/diagnosis/*.json and RUN/report.html. What is there already, of the same checkpoints and options, is not
    measured again; a part that cannot be measured is named and the others go on, and the exit status is 3.

    Examples:

      counterpoint diagnose all runs/sequential

      counterpoint diagnose all runs/sequential --quick
    """
    from counterpoint.cli.diagnose.behaviour import parse_alone
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    if quick and thorough:
        raise CounterpointError("--quick and --thorough exclude each other. Give one of them.")
    others = parse_alone(alone or ())
    from counterpoint.diagnosis import DiagnoseOptions, diagnose, write_result
    from counterpoint.report import write_report

    with ConsoleReporter() as reporter:
        summary = diagnose(
            run,
            DiagnoseOptions(prompts, samples, "quick" if quick else "thorough" if thorough else "usual", seed),
            alone=others,
            on_progress=reporter.working,
            on_part=lambda part: _tell(part, reporter),
        )
    if json is not None:
        write_result(json, "summary", summary)
    _print(summary)
    typer.echo(f"Report: {write_report(run)}")
    if any(part.status == "failed" for part in summary.parts):
        raise typer.Exit(PARTIAL)


def _tell(part: "PartDone", reporter: "ConsoleReporter") -> None:
    words = {
        "done": f"done in {part.seconds:.1f} s",
        "kept": "kept: nothing has changed",
        "failed": f"cannot be told: {part.reason}",
    }
    reporter.message(f"{part.name}: {words[part.status]}")


def _print(summary: "Summary") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if summary.pairs:
        table = Table(title="Later domain on earlier one", title_justify="left")
        for name in ("pair", "points", "damage", "predicted", "cosine", "edits", "routes"):
            table.add_column(name, justify="left" if name == "pair" else "right", overflow="fold")
        for pair in summary.pairs:
            arrow = "·" if pair.together else "→"
            table.add_row(escape(f"{pair.later} {arrow} {pair.earlier}"), *_cells(pair))
        console.print(table)
        console.print(
            "points: change of the earlier domain's score, * beyond noise. damage: loss per token. edits, routes: "
            "Jaccard (chance).",
            soft_wrap=True,
            highlight=False,
        )
    sentences = [
        *summary.sentences,
        *(total.sentence for total in summary.totals),
        *(text for pair in summary.pairs for text in (pair.outcome, pair.mechanism)),
    ]
    for sentence in sentences:
        console.print(f"- {escape(sentence)}", soft_wrap=True, highlight=False)
    console.print(f"{summary.seconds:.0f} s", highlight=False)


def _cells(pair: "object") -> list[str]:
    from counterpoint.diagnosis.whole_run.results import Pair

    assert isinstance(pair, Pair)
    mark = "*" if pair.verdict in ("fell", "rose") else ""
    damage, overlaps = pair.damage, (pair.edits, pair.routes)
    return [
        f"{100 * pair.change.value:+.1f}{mark}" if pair.change else "-",
        f"{damage.measured.value:+.2g}" if damage else "-",
        f"{damage.first.value + damage.second.value:+.2g}" if damage else "-",
        f"{pair.conflict.cosine:+.3f}{'*' if pair.conflict.verdict else ''}" if pair.conflict else "-",
        *(f"{found.jaccard:.2f} ({found.chance:.2f})" if found else "-" for found in overlaps),
    ]
