"""``counterpoint recover``: brings back what a run, or a later checkpoint, lost."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from counterpoint.errors import CounterpointError
from counterpoint.launch import rank_of_environment
from counterpoint.stats import MARGIN

if TYPE_CHECKING:
    from counterpoint.engine import Reporter
    from counterpoint.recovery import RecoverOptions
    from counterpoint.results import Result

T = TypeVar("T", bound="Result")


class How(StrEnum):
    """What is tried."""

    auto = "auto"
    rollback = "rollback"
    refresh = "refresh"
    both = "both"


class Score(StrEnum):
    """What ranks the weights of a rollback."""

    damage = "damage"
    magnitude = "magnitude"


def recover(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run; with --after also a configuration file.")],
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="The domain to bring back. [default: every one that fell]")
    ] = None,
    how: Annotated[How, typer.Option(help="auto: rollback, and a refresh where that is not enough.")] = How.auto,
    before: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="The checkpoint right after the domain's own stage.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="The later checkpoint that may have lost it.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write. [default: RUN/recovery]")
    ] = None,
    margin: Annotated[float, typer.Option(help="A score up to this much below another counts as the same.")] = MARGIN,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling, random masks and training.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what fell and what would be tried.")] = False,
    prompts: Annotated[int, typer.Option(help="Rollback: training prompts per domain.")] = 64,
    samples: Annotated[int, typer.Option(help="Rollback: completions of each.")] = 4,
    budgets: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Rollback: shares of all weights. [default: 0.003,0.01,0.03,0.1]"),
    ] = None,
    score: Annotated[
        Score, typer.Option(help="Rollback: rank weights by damage, or by magnitude, which needs less memory.")
    ] = Score.damage,
    steps: Annotated[int, typer.Option(help="Refresh: most optimizer steps.")] = 40,
    every: Annotated[int, typer.Option(help="Refresh: steps between evaluations of all domains.")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Refresh. [default: a fifth of the training's]")
    ] = None,
    replay: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Refresh: share of prompts from the other domains.")
    ] = None,
    protect: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Refresh: a domain whose gradient it gives way to.")
    ] = None,
    former: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Refresh: the score to reach, where no --before shows it.")
    ] = None,
) -> None:
    """Bring back what a domain lost after its own stage, and keep the better checkpoint.

    A rollback moves weights back without training; a refresh trains the domain for a few steps. Both are judged on held-out prompts, paired. An attempt that does not raise the domain beyond noise, or harms another domain, is not kept; the result says so, with exit status 0.

    The same command again goes on where it was stopped. Nothing is overwritten.

    Examples:

      counterpoint recover runs/seq --dry-run

      counterpoint recover runs/seq --domain math --how both

      counterpoint recover my.yaml --before A --after B --domain math -o mended
    """  # noqa: E501
    from counterpoint.cli._console import one_rank_speaks, quiet_libraries

    quiet_libraries()
    from counterpoint.recovery import RecoverOptions, RefreshOptions, RollbackOptions, plan_recovery

    rolled = RollbackOptions(
        score=score.value,
        budgets=None if budgets is None else numbers("--budgets", budgets),
        prompts=prompts,
        samples=samples,
        margin=margin,
        seed=seed,
    )
    refreshed = RefreshOptions(
        steps=steps,
        every=every,
        learning_rate=learning_rate,
        protect=tuple(protect or ()),
        replay=replay,
        former=former,
        margin=margin,
        seed=seed or None,
    )
    options = RecoverOptions(how.value, rolled, refreshed)
    if dry_run:
        if after is not None:
            raise CounterpointError("--dry-run reads what a run lost: give a run without --before and --after.")
        for sentence in plan_recovery(run, domain, options).plan:
            typer.echo(sentence)
        return
    with one_rank_speaks():
        _recover(run, domain, before, after, out, options)


def _recover(
    run: Path, domain: str | None, before: str | None, after: str | None, out: Path | None, options: "RecoverOptions"
) -> None:
    from counterpoint.recovery import recover as bring_back
    from counterpoint.recovery import refresh, rollback
    from counterpoint.report import write_report

    folder = out or Path(f"recovery-{domain}")
    if after is not None and domain is None:
        raise CounterpointError("--after: say which --domain is to be brought back.")
    if after is not None and domain is not None and options.how == "rollback":
        if before is None:
            raise CounterpointError("--how rollback: give --before, the checkpoint after the domain's own stage.")
        shown(
            lambda reporter, working: rollback(
                before, after, domain, run, out=folder, options=options.rollback, on_progress=working
            )
        )
    elif after is not None and domain is not None and options.how == "refresh":
        shown(
            lambda reporter, working: refresh(
                after, domain, run, out=folder, before=before, options=options.refresh, reporter=reporter
            ),
            folder,
        )
    else:
        found = shown(
            lambda reporter, working: bring_back(
                run,
                domain,
                before=before,
                after=after,
                out=out,
                options=options,
                reporter=reporter,
                on_progress=working,
            )
        )
        if found.fallen and out is None:
            typer.echo(f"Report: {write_report(run)}")


def shown(work: "Callable[[Reporter, Callable[[str, int, int], None]], T]", run: Path | None = None) -> T:
    """Does ``work`` with progress on the terminal and prints what it found; ``run`` is to have a report.

    On several ranks the first one alone shows it.
    """
    from rich.console import Console

    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.engine import Interrupted, Reporter
    from counterpoint.progress import silent
    from counterpoint.report import write_report

    if rank_of_environment():
        return work(Reporter(), silent)
    with ConsoleReporter() as reporter:
        try:
            found = work(reporter, reporter.working)
        except Interrupted as stop:
            reporter.message("Saved. Repeat the command to go on.")
            raise KeyboardInterrupt from stop
    console = Console()
    console.print(found)
    if run is not None:
        console.print(f"Report: {write_report(run)}", soft_wrap=True, highlight=False, markup=False)
    return found


def numbers(option: str, text: str) -> tuple[float, ...]:
    """``0.01,0.1`` as numbers; percentages such as ``1%`` too."""
    try:
        return tuple(float(part.strip().removesuffix("%")) / (100 if "%" in part else 1) for part in text.split(","))
    except ValueError:
        raise CounterpointError(f"{option} {text}: write numbers with commas between them, e.g. 0.01,0.1.") from None
