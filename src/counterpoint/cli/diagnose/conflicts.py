"""``counterpoint diagnose conflicts``: where the gradients of two domains oppose each other, beyond noise."""

from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import CounterpointError


def conflicts(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or pocket: where gradients are measured."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with the domains."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Instead of MODEL and CONFIG: this run, over its steps.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="GROUPING",
            help="Groups the tables show: layer, module, tensor, or package.module:function.",
        ),
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches of each domain; none share a prompt. 8 or 16.")] = 16,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts sampled per domain.")] = 128,
    completions: Annotated[
        Path | None, typer.Option("--completions", metavar="FILE", help="Completions that an analysis saved.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON.")] = None,
) -> None:
    """Show which parts of a model two domains pull in opposite directions, and what noise alone would show.

    Examples:

      counterpoint diagnose conflicts runs/mixed/checkpoints/step-60 runs/mixed

      counterpoint diagnose conflicts --run runs/mixed
    """
    from rich.console import Console

    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint import diagnosis

    found: diagnosis.Conflicts | diagnosis.ConflictsOverTime
    if run is not None:
        found = diagnosis.conflicts_over_time(run, by=by or "module")
    elif model is None or config is None:
        raise CounterpointError("Nothing to measure. Give a model and a configuration, or a run (--run RUN).")
    else:
        with ConsoleReporter() as reporter:
            found = diagnosis.conflicts(
                config,
                model,
                by=by,
                batches=batches,
                prompts=prompts,
                completions=completions,
                on_progress=reporter.working,
            )
    if json is not None:
        found.write(json)
    Console().print(found)
