"""``counterpoint report``: a run directory or a study as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Run directory, finished or not, or the folder of a study.")],
    compare: Annotated[
        list[Path] | None,
        typer.Option("--compare", metavar="RUN", help="Another run to compare with, prompt by prompt. Repeatable."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Write RUN/report.html, one self-contained page that needs no network; of a study, study.html.

    Works on a run that is still going, or was killed, from whatever it has written so far; run it again any time.

    Examples:

        counterpoint report runs/pocket-mgs
        counterpoint report runs/pocket-mgs --compare runs/baseline --open
    """
    from counterpoint.errors import RunError
    from counterpoint.report import is_study, write_report, write_study_report

    if is_study(run) and compare:
        raise RunError(f"'{run}' is a study, whose page compares its own runs. Leave out --compare.")
    path = write_study_report(run) if is_study(run) else write_report(run, compare=compare or ())
    typer.echo(str(path))
    if open_page:
        typer.launch(str(path))
