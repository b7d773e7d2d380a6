"""``counterpoint merge``: one model from several experts of one base."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from counterpoint.errors import CounterpointError


def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Checkpoint folder, `pocket` or hub id of the base.")],
    experts: Annotated[
        list[str], typer.Argument(metavar="EXPERT...", help="Checkpoints trained from it; of one, --scale is how far.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="New folder of the merged checkpoint.")],
    method: Annotated[
        Literal["average", "task_arithmetic", "ties"],
        typer.Option(
            metavar="NAME",
            help="average: the mean of the edits. task_arithmetic: their sum. ties: trimmed, their signs elected, and "
            "the mean of those that agree.",
        ),
    ] = "ties",
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Factor of the merged edit; of several, such as 0.3,0.5,1, the best on training prompts of --config. "
            " [default: 0.4 for task_arithmetic, else 1]",
            show_default=False,
        ),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="ties: share of each expert's edit that is kept.", show_default="0.2"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="CONFIG", help="Configuration whose domains choose among several scales."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Training prompts per domain for that choice.")] = 64,
) -> None:
    """Merge the weights of experts that were trained from one BASE; nothing is trained.

    Tensors are read one at a time. The files beside the weights are those of the first expert.

    Examples:

        counterpoint merge pocket runs/math/checkpoints/step-30 runs/code/checkpoints/step-30 -o merged
        counterpoint merge BASE A B C --method task_arithmetic --scale 0.3,0.5 --config my.yaml -o merged
    """
    from counterpoint.cli._console import ConsoleReporter, load, numbers, quiet_libraries

    quiet_libraries()
    from counterpoint.merging import merge as merge_checkpoints

    scales = () if scale is None else numbers("--scale", scale)
    if len(scales) > 1 and config is None:
        raise CounterpointError(f"--scale {scale}: several scales need --config, whose domains choose one of them.")
    with ConsoleReporter() as reporter:

        def merged(factor: float | None, folder: Path) -> Path:
            how: dict[str, Any] = {"method": method, "scale": factor, "density": density}
            return merge_checkpoints(base, experts, folder, **how, on_progress=reporter.working)

        if len(scales) < 2 or config is None:
            merged(next(iter(scales), None), out)
        else:
            from counterpoint.study.scale import choose_scale

            for factor, score in choose_scale(merged, scales, load(config), prompts, out, reporter):
                reporter.message(f"scale {factor:g}: {score:.3f} on {prompts} training prompts per domain")
    typer.echo(f"Written: {out}")
