"""``counterpoint diagnose damage``: what a later edit costs an earlier domain, predicted and measured."""

from pathlib import Path
from typing import Annotated

import typer


def damage(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file, or run, with the domains.")],
    before: Annotated[
        str, typer.Option("--before", metavar="CHECKPOINT", help="The checkpoint right after the domain's own stage.")
    ],
    after: Annotated[str, typer.Option("--after", metavar="CHECKPOINT", help="A later checkpoint of the same model.")],
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="The domain that may have suffered.")],
    other: Annotated[
        str | None,
        typer.Option(
            "--other", metavar="NAME", help="The later domain: also cut the damage into shared neurons and the rest."
        ),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Prompts sampled per domain.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Completions in memory at once; lower it where memory ends.")] = 8,
    lanczos: Annotated[int, typer.Option(help="Hessian products for the strongest directions; 0: leave out.")] = 0,
    completions: Annotated[
        Path | None, typer.Option("--completions", metavar="FILE", help="Completions of --before, instead of sampling.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON.")] = None,
) -> None:
    """Show what a later edit costs an earlier domain: first order, second order and Fisher beside the measured damage.

    Damage is the rise of the domain's loss, per token, on fixed completions of --before.

    Examples:

      counterpoint diagnose damage runs/seq --before runs/seq/checkpoints/step-80
      --after runs/seq/checkpoints/step-160 --domain math --other code
    """
    from rich.console import Console

    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint import diagnosis

    options = diagnosis.DamageOptions(prompts=prompts, batch_size=batch_size, lanczos=lanczos)
    with ConsoleReporter() as reporter:
        found = diagnosis.damage(
            config,
            before,
            after,
            domain,
            other=other,
            options=options,
            completions=completions,
            on_progress=reporter.working,
        )
    if json is not None:
        found.write(json)
    Console().print(found)
    if found.stopped:
        raise typer.Exit(1)
