"""The command ``counterpoint``: one file per subcommand, heavy imports only inside a command that runs."""

import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout

import typer

from counterpoint import __version__
from counterpoint.cli import config, diagnose, pocket
from counterpoint.cli.demo import demo
from counterpoint.cli.evaluate import evaluate
from counterpoint.cli.fetch import fetch
from counterpoint.cli.groups import groups
from counterpoint.cli.merge import merge
from counterpoint.cli.plan import plan
from counterpoint.cli.recover import recover
from counterpoint.cli.refresh import refresh
from counterpoint.cli.report import report
from counterpoint.cli.rollback import rollback
from counterpoint.cli.score import score
from counterpoint.cli.study import study
from counterpoint.cli.train import train
from counterpoint.cli.verify import verify
from counterpoint.errors import CounterpointError
from counterpoint.masking import MaskedStream

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it."""

app = typer.Typer(
    name="counterpoint",
    help="Train one language model on many domains with reinforcement learning, without the domains hurting each "
    "other.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: counterpoint demo",
)


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"counterpoint {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None: ...


app.command("train")(train)
app.command("eval")(evaluate)
app.command("refresh")(refresh)
app.command("report")(report)
app.command("demo")(demo)
app.command("rollback")(rollback)
app.command("recover")(recover)
app.command("score")(score)
app.command("groups")(groups)
app.command("fetch")(fetch)
app.command("plan")(plan)
app.command("verify")(verify)
app.command("study")(study)
app.command("merge")(merge)
app.add_typer(diagnose.app, name="diagnose")
app.add_typer(config.app, name="config")
app.add_typer(pocket.app, name="pocket")


def main() -> None:
    """Runs the command line; a user's mistake is one message and exit status 1, never a traceback."""
    # Before torch is imported: spinning OpenMP threads of two busy processes slow each other more than fifteenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with redirect_stdout(MaskedStream(sys.stdout)), redirect_stderr(MaskedStream(sys.stderr)):
        _run()


def _run() -> None:
    try:
        app()
    except CounterpointError as error:
        typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
        typer.echo(str(error), err=True)
        sys.exit(1)
    except KeyboardInterrupt as stop:
        typer.echo(f"\nStopped. {stop}".rstrip(), err=True)
        sys.exit(INTERRUPTED)
    except Exception:  # a bug: Python's own report of it, here where it is masked
        traceback.print_exc()
        sys.exit(1)
