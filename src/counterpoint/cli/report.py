"""``counterpoint report``: a run directory as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run directory, finished or not, e.g. runs/demo-mgs.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare", help="Another run directory to show beside it, domain by domain. Repeat for several."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser afterwards.")] = False,
) -> None:
    """Write RUN/report.html, one self-contained page that needs no network, and RUN/report.json with its content.

    Works on a run that is still going, or was killed, from whatever it has written so far; run it again any time.
    """
    from counterpoint.report import write_report

    path = write_report(run, compare=compare or ())
    typer.echo(str(path))
    if open_page:
        typer.launch(str(path))
