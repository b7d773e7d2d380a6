"""``counterpoint rollback``: undoes the part of a later edit that costs an earlier domain most, without training."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import CounterpointError


class Score(StrEnum):
    """What ranks the weights."""

    damage = "damage"
    magnitude = "magnitude"


class Unit(StrEnum):
    """What is restored as one."""

    coordinates = "coordinates"
    neurons = "neurons"


class Where(StrEnum):
    """Which weights may be restored."""

    everywhere = "everywhere"
    route = "route"


class Objective(StrEnum):
    """What is maximised on the selection split."""

    average = "average"
    domain = "domain"


def rollback(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with the domains.")
    ],
    before: Annotated[
        str, typer.Option("--before", metavar="CHECKPOINT", help="The checkpoint right after the domain's own stage.")
    ],
    after: Annotated[str, typer.Option("--after", metavar="CHECKPOINT", help="A later checkpoint of the same model.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="The domain that may have suffered.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the restored checkpoint is written.")
    ],
    other: Annotated[
        str | None, typer.Option("--other", metavar="NAME", help="The later domain (--where route).")
    ] = None,
    score: Annotated[
        Score,
        typer.Option(
            help="Ranks weights: F d^2 with the domain's Fisher diagonal F (damage), or the size of the edit |d| "
            "(magnitude)."
        ),
    ] = Score.damage,
    unit: Annotated[Unit, typer.Option(help="Single weights, or whole MLP neurons.")] = Unit.coordinates,
    where: Annotated[
        Where, typer.Option(help="Everywhere, or on the neurons that the domain shares with --other.")
    ] = Where.everywhere,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Shares of all weights to restore.",
            show_default="0.001,0.003,0.01,0.03,0.1,0.3, as far as the edit goes",
        ),
    ] = None,
    scales: Annotated[
        str, typer.Option(metavar="LIST", help="How far they are moved back; 1 is all the way.")
    ] = "0.5,1",
    objective: Annotated[
        Objective, typer.Option(help="What chooses: the mean reward of all domains, or of the damaged one alone.")
    ] = Objective.average,
    draws: Annotated[int, typer.Option(help="Random sets of as many weights beside each one.")] = 3,
    prompts: Annotated[
        int, typer.Option(help="Training prompts per domain for the score, and again for the selection.")
    ] = 64,
    samples: Annotated[int, typer.Option(help="Completions per training prompt.")] = 4,
    completions: Annotated[
        Path | None,
        typer.Option("--completions", metavar="FILE", help="Completions of --before an analysis saved: no sampling."),
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of neurons that form a domain's route.")] = 0.1,
    batch_size: Annotated[int, typer.Option(help="Completions in memory at once for routes.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and of the random sets.")] = 0,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Where the result is written.",
            show_default="recovery/rollback.json of the run that --after is a checkpoint of, else FOLDER.rollback.json",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on even where the domain did not fall.")] = False,
) -> None:
    """Restore the part of an earlier domain's weights whose later change costs it most; nothing is trained.

    Weights are ranked, and the best ones of several budgets are moved back part of the way or all of it. Budget and
    scale are chosen on training prompts and reported once on the held-out ones, beside random weights of the same
    number. The rest of the new checkpoint is that of --after, bit for bit. It is written only where the domain fell and
    something helps; the result says so either way, with exit status 0.

    Memory: the model, and for --score damage its gradient and a float32 copy. Checkpoints are read tensor by tensor.

    Examples:

      counterpoint rollback --before runs/seq/checkpoints/step-80 --after runs/seq/checkpoints/step-160
      --domain math runs/seq -o restored

      counterpoint rollback --before a --after b --domain math --other qa --where route --unit neurons
      --budgets 0.01,0.05 config.yaml -o restored
    """
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.cli.rollback_tables import print_rollback
    from counterpoint.recovery import RollbackOptions
    from counterpoint.recovery import rollback as restore

    options = RollbackOptions(
        score=score.value,
        unit=unit.value,
        where=where.value,
        budgets=numbers("--budgets", budgets) if budgets is not None else None,
        scales=numbers("--scales", scales),
        draws=draws,
        objective=objective.value,
        prompts=prompts,
        samples=samples,
        fraction=fraction,
        batch_size=batch_size,
        seed=seed,
        force=force,
    )
    place = json or default_place(after, out)
    with ConsoleReporter() as reporter:
        found = restore(
            before,
            after,
            domain,
            config,
            out=out,
            other=other,
            options=options,
            completions=completions,
            save=place,
            on_progress=reporter.working,
        )
    print_rollback(found)
    typer.echo(f"Written: {found.checkpoint}" if found.checkpoint else "No checkpoint was written.")
    typer.echo(f"Result: {place}")


def default_place(after: str, out: Path) -> Path:
    """Where the result goes: into the run that ``after`` is a checkpoint of, or beside ``out``."""
    run = Path(after).resolve().parent.parent
    if (run / "run.json").is_file() and Path(after).is_dir():
        return run / "recovery" / "rollback.json"
    return out.with_name(f"{out.name}.rollback.json")


def numbers(option: str, text: str) -> tuple[float, ...]:
    """``0.01,0.1`` as numbers; percentages such as ``1%`` too."""
    try:
        return tuple(float(part.strip().removesuffix("%")) / (100 if "%" in part else 1) for part in text.split(","))
    except ValueError:
        raise CounterpointError(f"{option} {text}: write numbers with commas between them, e.g. 0.01,0.1.") from None
