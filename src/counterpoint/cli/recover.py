"""``counterpoint recover``: brings back what a run, or a later checkpoint, lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from counterpoint.errors import CounterpointError
from counterpoint.stats import MARGIN

if TYPE_CHECKING:
    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.recovery import RecoverOptions


def recover(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CONFIG", help="A finished run; or, with --after, the configuration of the domains."
        ),
    ],
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="The domain to bring back. [default: every one that fell]")
    ] = None,
    how: Annotated[
        Literal["auto", "rollback", "refresh", "both"],
        typer.Option(
            metavar="WAY", help="rollback, refresh, both, or auto: a refresh where the rollback is not enough."
        ),
    ] = "auto",
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
        Literal["damage", "magnitude"],
        typer.Option(
            metavar="NAME", help="Rollback: rank weights by damage, or by magnitude, which needs less memory."
        ),
    ] = "damage",
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
    from counterpoint.cli._console import numbers, progress, quiet_libraries

    quiet_libraries()
    from counterpoint.recovery import RecoverOptions, RefreshOptions, RollbackOptions, plan_recovery

    budget = None if budgets is None else numbers("--budgets", budgets)
    rolled = RollbackOptions(score=score, budgets=budget, prompts=prompts, samples=samples, margin=margin, seed=seed)
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
    options = RecoverOptions(how, rolled, refreshed)
    if dry_run:
        if after is not None:
            raise CounterpointError("--dry-run reads what a run lost: give a run without --before and --after.")
        for sentence in plan_recovery(run, domain, options).plan:
            typer.echo(sentence)
        return
    with progress("Repeat the command to go on.") as reporter:
        _recover(run, domain, before, after, out, options, reporter)


def _recover(
    run: Path,
    domain: str | None,
    before: str | None,
    after: str | None,
    out: Path | None,
    options: "RecoverOptions",
    reporter: "ConsoleReporter",
) -> None:
    from counterpoint.recovery import recover as bring_back
    from counterpoint.recovery import refresh, rollback

    folder = out or Path(f"recovery-{domain}")
    if after is not None and domain is None:
        raise CounterpointError("--after: say which --domain is to be brought back.")
    if after is not None and domain is not None and options.how == "rollback":
        if before is None:
            raise CounterpointError("--how rollback: give --before, the checkpoint after the domain's own stage.")
        work, rolled = reporter.working, options.rollback
        reporter.show(rollback(before, after, domain, run, out=folder, options=rolled, on_progress=work))
    elif after is not None and domain is not None and options.how == "refresh":
        fresh = refresh(after, domain, run, out=folder, before=before, options=options.refresh, reporter=reporter)
        reporter.show(fresh)
        reporter.report(folder)
    else:
        given: dict[str, Any] = {"before": before, "after": after, "out": out, "options": options}
        found = bring_back(run, domain, **given, reporter=reporter, on_progress=reporter.working)
        reporter.show(found)
        if found.fallen and out is None:
            reporter.report(run)
