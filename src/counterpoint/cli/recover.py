"""``counterpoint recover``: says what a run lost, tries to bring it back, and leaves the better checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from counterpoint.recovery import Recover, RecoverOptions


def recover(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run directory.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what fell, what would be tried and what it would cost; do nothing.")
    ] = False,
    both: Annotated[
        bool, typer.Option("--both", help="Refresh even where the rollback is enough, and keep the better one.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Most optimizer steps of a refresh.")] = 40,
    every: Annotated[int, typer.Option(help="Steps between its looks at all domains.")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Of the refresh, instead of the run's own.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Training prompts per domain that choose the rollback.")] = 64,
    samples: Annotated[int, typer.Option(help="Completions of each.")] = 4,
    draws: Annotated[int, typer.Option(help="Random sets of weights beside each one of the rollback.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rollback's sampling.")] = 0,
) -> None:
    """Bring back what a run lost: read its evaluations, say what fell, roll back, refresh, keep the better checkpoint.

    A domain counts as fallen where its held-out score is below that after its own stage beyond noise, corrected for all
    comparisons. The worst one comes first. Each is rolled back without training and, where that is not enough,
    refreshed by a few steps from the same checkpoint. Of the attempts that bring it up and harm no other domain, the
    one with the best mean over all domains is left as RUN/recovery/checkpoint, with RUN/recovery/recover.json.

    The same command goes on where it was stopped; finished attempts are not repeated. A run that lost nothing is left
    alone, with exit status 0.

    Examples:

      counterpoint recover runs/pocket-interference --dry-run

      counterpoint recover runs/pocket-interference --both --steps 20
    """
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.recovery import RecoverOptions, RefreshOptions, RollbackOptions, plan_recovery

    options = RecoverOptions(
        RollbackOptions(prompts=prompts, samples=samples, draws=draws, seed=seed),
        RefreshOptions(steps=steps, every=every, learning_rate=learning_rate),
        both,
    )
    if dry_run:
        for sentence in plan_recovery(run, options).plan:
            typer.echo(sentence)
        return
    _recover(run, options)


def _recover(run: Path, options: "RecoverOptions") -> None:
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.engine import Interrupted
    from counterpoint.recovery import recover as bring_back
    from counterpoint.report import write_report

    with ConsoleReporter() as reporter:
        try:
            found = bring_back(run, options, reporter=reporter, on_progress=reporter.working)
        except Interrupted as stop:
            reporter.message(f"Saved. Repeat the command to go on: counterpoint recover {run}")
            raise KeyboardInterrupt from stop
    print_recover(found)
    if found.fallen:
        typer.echo(f"Report: {write_report(run)}")


def print_recover(found: "Recover") -> None:
    """A table of the attempts, domain by domain."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    done = [attempt for attempt in found.attempts if attempt.scores]
    if done:
        table = Table(title="Held-out reward after each attempt, change against its start", title_justify="left")
        table.add_column("domain", style="bold")
        for attempt in done:
            table.add_column(f"{attempt.kind} {attempt.domain}", justify="right")
        for domain in done[0].scores:
            cells = [f"{one.scores[domain].value:.3f} ({one.changes[domain].value:+.3f})" for one in done]
            table.add_row(domain, *cells)
        console.print(table)
    if found.finished and found.fallen:
        console.print(found.sentences[-1], soft_wrap=True, highlight=False, markup=False)
