"""``counterpoint diagnose routes``: which neurons and heads each domain uses, and what two domains share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import CounterpointError


def routes(
    model: Annotated[str, typer.Argument(help="Checkpoint folder, hub id, or pocket: where routes are measured.")],
    config: Annotated[Path, typer.Argument(help="Configuration file, or run directory, with the domains.")],
    domain: Annotated[
        list[str] | None, typer.Option("--domain", metavar="NAME", help="Only this domain. Repeatable; default: all.")
    ] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit",
            metavar="DOMAIN=[BEFORE,]AFTER",
            help="Checkpoints before and after training DOMAIN; without BEFORE it is the configuration's model. "
            "Two or more give the direction on shared routes.",
        ),
    ] = None,
    completions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Completions an analysis saved, instead of sampling.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts sampled per domain.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Completions per prompt.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling, resampling and controls.")] = 0,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write everything there, and FILE.completions.jsonl."),
    ] = None,
) -> None:
    """Show which neurons and heads each domain uses, how far two domains share them, and who pulls them where."""
    from rich.console import Console

    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.diagnosis import routes as measure

    with ConsoleReporter() as reporter:
        found = measure(
            config,
            model,
            domains=domain,
            edits=parse_edits(edit or ()),
            completions=completions,
            prompts=prompts,
            samples=samples,
            seed=seed,
            save=json.with_name(f"{json.name}.completions.jsonl") if json else None,
            on_progress=reporter.working,
        )
    if json is not None:
        found.write(json)
    Console().print(found)


def parse_edits(values: Sequence[str]) -> dict[str, str | Path | tuple[str | Path, str | Path]]:
    """``DOMAIN=[BEFORE,]AFTER`` as a dictionary."""
    found: dict[str, str | Path | tuple[str | Path, str | Path]] = {}
    for value in values:
        name, _, paths = value.partition("=")
        before, comma, after = paths.partition(",")
        if not (name and before) or (comma and not after):
            raise CounterpointError(f"--edit {value}: write DOMAIN=AFTER or DOMAIN=BEFORE,AFTER.")
        if name in found:
            raise CounterpointError(f"--edit {value}: {name!r} has an edit already. Give one per domain.")
        found[name] = (before, after) if comma else before
    return found
