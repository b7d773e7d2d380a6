"""``counterpoint diagnose edits``: what training changed between a base and checkpoints, and what their edits share."""

from pathlib import Path
from typing import Annotated

import typer


def edits(
    base: Annotated[str, typer.Argument(help="The model before training: a folder, `pocket`, or a hub id.")],
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help="One or more checkpoints trained from it; LoRA adapters too."),
    ],
    chain: Annotated[
        bool,
        typer.Option("--chain", help="Compare every checkpoint with the one before it, as stages of a sequence need."),
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write everything there.")] = None,
) -> None:
    """Show what training changed: how many weights, where, in how many directions, and which neurons."""
    from rich.console import Console

    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.diagnosis import edits as measure

    with ConsoleReporter() as reporter:
        found = measure(base, checkpoints, chain=chain, on_progress=reporter.working)
    if json is not None:
        found.write(json)
    Console().print(found)
