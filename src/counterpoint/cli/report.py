"""``counterpoint report``: a run directory or a study as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path, typer.Argument(help="Run directory, finished or not, or the folder of a study, e.g. runs/demo-mgs.")
    ],
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare", help="Another run directory to show beside it, domain by domain. Repeat for several."
        ),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page until Ctrl-C; it follows the run while it goes.")
    ] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of --serve, 8377 if not given; 0 takes any free one.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="Address of --serve. Without it only this machine can see the page; others have to be named."
        ),
    ] = None,
) -> None:
    """Write RUN/report.html, one self-contained page that needs no network.

    Works on a run that is still going, or was killed, from whatever it has written so far; run it again any time. Of a
    study it writes study.html.

    With --serve the page is also to be had at an address, and changes by itself as the run goes on. Nothing but the
    page can be read there.

    Examples:

      counterpoint report runs/pocket-mgs

      counterpoint report runs/pocket-mgs --compare runs/baseline --open

      counterpoint report runs/pocket-mgs --serve

    On another machine: ssh -L 8377:localhost:8377 THAT-MACHINE, then counterpoint report RUN --serve there.
    """
    if not serve:
        _write(run, compare or [], open_page, given=[("--port", port), ("--host", host)])
        return
    from counterpoint.report.serving import PORT, ReportServer
    from counterpoint.report.serving import serve as run_server

    def announce(server: ReportServer) -> None:
        if not server.loopback:
            typer.echo("Everybody who can reach this machine at that address can read the page.", err=True)
        typer.echo(f"{server.url}  Ctrl-C ends it.")
        if open_page:
            typer.launch(server.url)

    run_server(run, compare or (), host or "", PORT if port is None else port, announce)
    typer.echo("Ended.")


def _write(run: Path, compare: list[Path], open_page: bool, given: list[tuple[str, object]]) -> None:
    from counterpoint.errors import RunError
    from counterpoint.report import is_study, write_report, write_study_report

    for option, value in given:
        if value is not None:
            raise RunError(f"{option} says where to serve the page. Add --serve, or leave it out.")
    if not is_study(run):
        path = write_report(run, compare=compare)
    elif compare:
        raise RunError(f"'{run}' is a study, whose page compares its own runs. Leave out --compare.")
    else:
        path = write_study_report(run)
    typer.echo(str(path))
    if open_page:
        typer.launch(str(path))
