"""``counterpoint demo``: the main job on the embedded model, in minutes on two cores."""

from pathlib import Path
from typing import Annotated, Any

import typer

STRATEGIES = ("mixed", "mgs")


def demo_settings(strategy: str, steps: int, prompts: int, folder: Path) -> dict[str, Any]:
    """The configuration of one demo run; both differ in the strategy alone."""
    return {
        "model": "pocket",
        "strategy": strategy,
        "domains": {name: {"source": "pocket"} for name in ("math", "code", "qa", "writing")},
        "training": {
            "max_steps": steps,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 4,
            "num_generations": 8,
            "max_completion_length": 24,
            "activation_checkpointing": False,
        },
        "evaluation": {"prompts": prompts, "samples": 4, "batch_size": 256},
        "run": {"dir": str(folder), "name": strategy, "save_every": max(1, steps), "keep": 1},
    }


def demo(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of each run.")] = 60,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="Held-out prompts per domain.")] = 128,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where the two runs go; default: a new folder below runs/.")
    ] = None,
) -> None:
    """See the product work: the pocket model on four domains, with `mixed` and with `mgs`, from the same start.

    Prints a table (domains x {before, mixed, mgs}, 95 % intervals) and the path of a report page. Needs no network.
    Two to eight minutes on two cores.
    """
    import time

    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries
    from counterpoint.cli.tables import print_run_table
    from counterpoint.config import parse_config
    from counterpoint.report import write_report

    quiet_libraries(offline=True)
    from counterpoint.engine import train

    folder = folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    typer.echo(f"The pocket model on four domains, {steps} steps with each of: {', '.join(STRATEGIES)}. Runs: {folder}")
    runs = []
    for strategy in STRATEGIES:
        with ConsoleReporter(label=strategy) as reporter:
            runs.append(train(parse_config(demo_settings(strategy, steps, prompts, folder)), strategy, reporter))
    print_run_table(runs)
    typer.echo("One seed of a toy model: it shows that the tool works, not which strategy is better.")
    typer.echo(f"Report: {write_report(runs[-1].path, compare=[run.path for run in runs[:-1]])}")
