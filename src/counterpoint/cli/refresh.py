"""``counterpoint refresh``: short training on a damaged domain until it is back."""

from pathlib import Path
from typing import Annotated

import typer


def refresh(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with domains and settings.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="CHECKPOINT", help="The checkpoint that lost a domain.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="The domain to bring back.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="The run directory to write, or to go on.")],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="CHECKPOINT",
            help="The checkpoint after the domain's own stage: what it scores now is the score to reach.",
        ),
    ] = None,
    former: Annotated[
        float | None,
        typer.Option("--former", metavar="SCORE", help="The score to reach, where no checkpoint shows it."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Most optimizer steps.")] = 40,
    every: Annotated[int, typer.Option(help="Steps between looks at all domains.")] = 5,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", help="Instead of the configuration's training.learning_rate.")
    ] = None,
    replay: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Share of every step's prompts from the other domains, e.g. 0.25."),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            "--protect",
            metavar="NAME",
            help="A domain whose gradient the refresh gives way to; needs --replay (0.5 unless given). Repeatable.",
        ),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With replay: mixed, pcgrad, mgs, ... [mgs with --protect, else mixed]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of training; the configuration's plus one.")] = None,
) -> None:
    """Bring a damaged domain back by a few steps of reinforcement learning on it, watching all the others.

    It stops when the domain is back within the interval of its former score, when another domain falls below its own
    at the start, or at the step limit, and says which. A domain that is not damaged is left alone. RUN becomes a run
    directory with recovery/refresh.json; the same command goes on with one that was stopped.

    Examples:

      counterpoint refresh runs/seq --model runs/seq/checkpoints/step-160 --domain math -o runs/seq-math

      counterpoint refresh config.yaml --model after --reference before --domain math -o runs/math

      counterpoint refresh config.yaml --model after --former 0.9 --domain math --protect code -o runs/math
    """
    from counterpoint.cli.running import one_rank_speaks, quiet_libraries

    quiet_libraries()
    from counterpoint.recovery import RefreshOptions

    options = RefreshOptions(
        steps=steps,
        every=every,
        learning_rate=learning_rate,
        protect=tuple(protect or ()),
        replay=replay,
        strategy=strategy,
        seed=seed,
        former=former,
    )
    from counterpoint.cli.refreshing import with_progress
    from counterpoint.recovery import refresh as bring_back

    with one_rank_speaks():
        with_progress(
            out,
            lambda reporter: bring_back(
                model, domain, config, reference=reference, out=out, options=options, reporter=reporter
            ),
        )
