"""``counterpoint train``: one configuration to a better model."""

from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import ConfigError


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration file (YAML). See `counterpoint config schema`.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Replace one key of the file, e.g. --set training.max_steps=20. Repeatable.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", metavar="RUN", help="Continue this run from its last checkpoint, with the same numbers."
        ),
    ] = None,
) -> None:
    """Train one model on several domains.

    Everything is checked before training starts. The run directory (run.dir/run.name) holds metrics, evaluations,
    samples, checkpoints and report.html. Ctrl-C saves; so does a kill, up to the last checkpoint.

    Examples:

      counterpoint train examples/pocket-mgs.yaml

      counterpoint train my.yaml --set strategy=mixed --set run.name=baseline

      counterpoint train --resume runs/pocket-mgs

      counterpoint train --resume runs/pocket-mgs --set training.max_steps=200   (a finished run, made longer)

      torchrun --nproc-per-node 2 -m counterpoint train my.yaml
    """
    from counterpoint.cli.running import one_rank_speaks, quiet_libraries

    quiet_libraries()
    with one_rank_speaks():
        _train(config, overrides, resume)


def _train(config: Path | None, overrides: list[str] | None, resume: Path | None) -> None:
    if (config is None) == (resume is None):
        raise ConfigError("Give either a configuration file or --resume RUN, not both and not neither.")
    from counterpoint.cli.loading import load
    from counterpoint.cli.running import resume_run, train_config

    if resume is not None:
        resume_run(resume, overrides or ())
        return
    assert config is not None
    loaded = load(config, overrides)
    train_config(loaded, loaded.run.name or config.stem)
