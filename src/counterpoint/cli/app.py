"""The command ``counterpoint``: one file per group of commands, heavy imports only inside a command that runs."""

import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout

import typer

from counterpoint import __version__
from counterpoint.cli import config
from counterpoint.cli._console import INTERRUPTED
from counterpoint.cli.compare import compare, evaluate
from counterpoint.cli.demo import demo
from counterpoint.cli.diagnose import diagnose
from counterpoint.cli.merge import merge
from counterpoint.cli.plan import plan
from counterpoint.cli.recover import recover
from counterpoint.cli.report import report
from counterpoint.cli.score import score
from counterpoint.cli.study import study
from counterpoint.cli.train import train
from counterpoint.cli.verify import verify
from counterpoint.errors import CounterpointError
from counterpoint.masking import MaskedStream

TRAIN, LOOK, REPAIR, COMPARE, TOOLS = "Train", "Look", "Repair", "Compare", "Tools"

app = typer.Typer(
    name="counterpoint",
    help="Train one language model on many domains with reinforcement learning, without the domains hurting each "
    "other.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # breaks the lines of a paragraph where the terminal ends, not where the file did
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


app.command("demo", rich_help_panel=TRAIN)(demo)
app.command("train", rich_help_panel=TRAIN)(train)
app.command("report", rich_help_panel=LOOK)(report)
app.command("diagnose", rich_help_panel=LOOK)(diagnose)
app.command("recover", rich_help_panel=REPAIR)(recover)
app.command("merge", rich_help_panel=REPAIR)(merge)
app.command("eval", rich_help_panel=COMPARE)(evaluate)
app.command("compare", rich_help_panel=COMPARE)(compare)
app.command("study", rich_help_panel=COMPARE)(study)
app.add_typer(config.app, name="config", rich_help_panel=TOOLS)
app.command("plan", rich_help_panel=TOOLS)(plan)
app.command("score", rich_help_panel=TOOLS)(score)
app.command("verify", rich_help_panel=TOOLS)(verify)


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
