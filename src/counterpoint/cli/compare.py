"""``counterpoint eval`` and ``counterpoint compare``: any checkpoints on the held-out prompts of a configuration."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.cli._console import Overrides
from counterpoint.errors import ConfigError

if TYPE_CHECKING:
    from counterpoint.config import Config

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Configuration file whose domains are evaluated, or a run directory.")
]


def evaluate(
    config: ConfigArgument,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="PATH",
            help="Checkpoint folder, hub id, `pocket`, or `step-N` of the run.",
            show_default="the configuration's, or the run's last checkpoint",
        ),
    ] = None,
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the scores there, as JSON lines.")
    ] = None,
) -> None:
    """Evaluate one model on the held-out prompts of every domain, with 95 % intervals.

    Nothing of the configuration's batch is checked: only its domains and the way they are evaluated count.

    Examples:

        counterpoint eval examples/pocket-mgs.yaml --model pocket
        counterpoint eval runs/pocket-mgs --model step-60
    """
    if models is not None and len(models) > 1:
        raise ConfigError(
            f"--model: found {len(models)} models, and eval takes one. Compare several with: counterpoint compare "
            f"{config} {' '.join(models)}"
        )
    import json

    from counterpoint.cli._console import progress, quiet_libraries

    quiet_libraries()
    from counterpoint.disk import write_text
    from counterpoint.engine import evaluate_checkpoints
    from counterpoint.evaluation.comparison import compare_scores

    with progress() as reporter:
        loaded, chosen = _config(config, overrides), _checkpoint(config, models[0] if models else None)
        ((name, scores),) = evaluate_checkpoints(loaded, [chosen], reporter=reporter).items()
        if any(score.parts or score.unscored or score.reward_cut for score in scores):
            reporter.evaluated(name, 0, scores)
        reporter.show(compare_scores({name: {score.domain: score.scores for score in scores}}))
        if output is not None and reporter.speaks:
            write_text(output, "".join(json.dumps(score.to_json()) + "\n" for score in scores))


def compare(
    config: ConfigArgument,
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Two or more: folders, hub ids, `pocket`, or `step-N` of the run. The others are compared with the "
            "first.",
        ),
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FOLDER", help="Folder of the results.", show_default="compare-CONFIG beside runs"
        ),
    ] = None,
) -> None:
    """Compare checkpoints on the same held-out prompts.

    Every model answers the same prompts with the same random stream, one model in memory at a time. Differences from
    the first checkpoint are paired by prompt. The folder holds compare.html, .md, .tex, .csv and .json, and the scores
    of every checkpoint: calling again, with more checkpoints too, evaluates only what is new or has changed.

    Examples:

        counterpoint compare my.yaml pocket models/first models/second
        counterpoint compare runs/pocket-sequential step-20 step-40 step-60
    """
    if len(checkpoints) < 2:
        raise ConfigError(
            f"compare: found one checkpoint, and a comparison takes two or more. Add another, or score this one with: "
            f"counterpoint eval {config} --model {checkpoints[0]}"
        )
    from counterpoint.cli._console import progress, quiet_libraries

    quiet_libraries()
    from counterpoint.engine import compare_checkpoints
    from counterpoint.report import write_comparison

    with progress() as reporter:
        loaded = _config(config, overrides)
        folder = out or (config / "compare" if _is_run(config) else Path(loaded.run.dir) / f"compare-{config.stem}")
        chosen = [_checkpoint(config, name) or name for name in checkpoints]
        found = compare_checkpoints(loaded, chosen, cache=folder / "scores", reporter=reporter)
        reporter.show(found)
        if reporter.speaks:
            reporter.message(f"Page: {write_comparison(found, folder)}")


def _is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


def _config(path: Path, overrides: list[str] | None) -> "Config":
    from counterpoint.cli._console import load

    return load(path / "config.yaml" if _is_run(path) else path, overrides)


def _checkpoint(path: Path, name: str | None) -> str | None:
    """The checkpoint that is meant: ``step-N`` is one of the run at ``path``, whose last one is meant by None."""
    if not _is_run(path):
        return name
    from counterpoint.runs.run import Run

    places = {place.name: place for _, place in Run.open(path).checkpoints}
    if name is None and not places:
        raise ConfigError(f"{path}: the run has no checkpoint yet. Name a model with --model.")
    if name is None:
        return str(list(places.values())[-1])
    if name.startswith("step-") and name not in places and not Path(name).exists():
        raise ConfigError(f"{name}: no checkpoint of {path}; it has: {', '.join(places) or 'none yet'}.")
    return str(places.get(name, name))
