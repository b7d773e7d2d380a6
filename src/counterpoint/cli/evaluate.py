"""``counterpoint eval``: scores any checkpoint on the domains of a configuration."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    config: Annotated[Path, typer.Argument(help="Configuration file whose domains are evaluated.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="PATH", help="Checkpoint folder or hub id instead of the configuration's model."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace one key of the file. Repeatable.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the scores there, as JSON lines.")
    ] = None,
) -> None:
    """Evaluate a model on the held-out prompts of every domain, with 95 % intervals.

    Example:

      counterpoint eval examples/pocket-mgs.yaml --model runs/pocket-mgs/checkpoints/step-60
    """
    from counterpoint.cli.running import one_rank_speaks, quiet_libraries

    quiet_libraries()
    with one_rank_speaks():
        _evaluate(config, [*(overrides or ()), *([f"model.path={model}"] if model else [])], output)


def _evaluate(config: Path, settings: list[str], output: Path | None) -> None:
    from counterpoint.cli.loading import load
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.launch import rank_of_environment
    from counterpoint.runs import write_text

    loaded = load(config, settings)
    from counterpoint.engine import evaluate_model

    if rank_of_environment():
        evaluate_model(loaded)
        return
    with ConsoleReporter() as reporter:
        scores = evaluate_model(loaded, reporter)
        reporter.evaluated("evaluation", 0, scores)
    if output is not None:
        import json

        write_text(output, "".join(json.dumps(score.to_json()) + "\n" for score in scores))
