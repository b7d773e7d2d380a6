"""``counterpoint diagnose edits``: what training changed between a base and checkpoints, and what their edits share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Reading(StrEnum):
    """How the two conditions of an unchanged weight are joined."""

    both = "both"
    either = "either"


class Norm(StrEnum):
    """How the size of a neuron's edit is measured."""

    l2 = "l2"
    l1 = "l1"
    max = "max"


def edits(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The model before training: a folder, `pocket`, or a hub id.")
    ],
    checkpoints: Annotated[
        list[str],
        typer.Argument(metavar="CHECKPOINT...", help="One or more checkpoints trained from it; LoRA adapters too."),
    ],
    chain: Annotated[
        bool,
        typer.Option("--chain", help="Compare every checkpoint with the one before it, as stages of a sequence need."),
    ] = False,
    top: Annotated[float, typer.Option(help="Share of neurons called the most changed.")] = 0.1,
    norm: Annotated[Norm, typer.Option(help="Of a neuron's edit over gate row, up row and down column.")] = Norm.l2,
    absolute: Annotated[float, typer.Option(help="A weight is unchanged below this edit ...")] = 1e-7,
    relative: Annotated[float, typer.Option(help="... and below this edit relative to the weight.")] = 1e-3,
    reading: Annotated[Reading, typer.Option(help="Whether both conditions must hold, or either.")] = Reading.both,
    permutations: Annotated[
        int, typer.Option(help="Shuffles that check the chance level of overlaps; p-values are exact without.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffles.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that read and add.", show_default="processors, at most 16")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything there, as JSON.")
    ] = None,
) -> None:
    """Show what training changed: how many weights, where, in how many directions, and which neurons.

    Weights are streamed from safetensors in one pass, so memory for the models is not needed. Every number stands
    beside what chance or rounding gives.

    Examples:

      counterpoint diagnose edits Qwen/Qwen3-4B math/ code/ --json edits.json

      counterpoint diagnose edits pocket runs/seq/checkpoints/step-40 runs/seq/checkpoints/step-80 --chain
    """
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.cli.diagnose.edits_tables import print_edits
    from counterpoint.diagnosis import Thresholds, write_result
    from counterpoint.diagnosis import edits as measure

    with ConsoleReporter() as reporter:
        found = measure(
            base,
            checkpoints,
            chain=chain,
            thresholds=Thresholds(absolute, relative, reading.value),
            top=top,
            norm=norm.value,
            permutations=permutations,
            seed=seed,
            threads=threads,
            on_progress=reporter.working,
        )
    if json is not None:
        write_result(json, "edits", found)
    print_edits(found)
