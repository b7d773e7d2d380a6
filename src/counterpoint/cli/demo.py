"""``counterpoint demo``: two domains that hurt each other, seen, prevented and repaired, in minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from counterpoint.recovery import Recover
    from counterpoint.runs.run import Run
    from counterpoint.tables import Cell, Table

ORDER = ("short", "long")
STRATEGIES = ("sequential", "mixed", "mgs")


def demo(
    steps: Annotated[int, typer.Option("--steps", min=2, help="Optimizer steps of each run.")] = 40,
    prompts: Annotated[int, typer.Option("--prompts", min=2, max=64, help="Held-out prompts per domain.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order of prompts and of sampling.")] = 0,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where the runs go.", show_default="a new folder below runs/"),
    ] = None,
) -> None:
    """Watch two domains hurt each other, and what helps, on the built-in pocket model.

    One domain wants short answers, the other long ones, to the same family of prompts. They are trained one after the other, then together with `mixed` and with `mgs`, from the same start and with the same budget. Then the domain that fell is brought back by a refresh that gives way to the other one. Prints a table with 95 % intervals and the path of a report page. Needs no network. Two to four minutes on two cores.
    """  # noqa: E501
    import time

    from counterpoint.cli._console import progress, quiet_libraries
    from counterpoint.config import parse_config
    from counterpoint.report import write_report
    from counterpoint.runs.run import Run

    quiet_libraries(offline=True)
    from counterpoint.engine import train
    from counterpoint.recovery import RecoverOptions, RefreshOptions, recover

    folder = folder or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    typer.echo(
        f"One domain wants short answers and one long answers to the same prompts: {steps} steps one after the other, "
        f"then together with mixed and with mgs. Runs: {folder}"
    )
    runs = []
    for strategy in STRATEGIES:
        config = parse_config(demo_settings(strategy, steps, prompts, seed, folder))
        with progress(label=strategy) as reporter:
            runs.append(Run.open(train(config, strategy, reporter).path))
    refresh = RefreshOptions(steps=max(1, steps // 2), every=max(1, steps // 4), protect=ORDER[1:])
    with progress(label="recover") as reporter:
        options = RecoverOptions("refresh", refresh=refresh)
        found = recover(runs[0].path, options=options, reporter=reporter, on_progress=reporter.working)
    reporter.console.print(demo_table(runs, found))
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo(
        "\nOne seed of a toy model. What comes one after the other falls with every seed; which of mixed and mgs ends "
        "higher changes with it: try --seed 1. Over seeds: docs/study-weight.md"
    )
    typer.echo(f"Next: counterpoint diagnose {runs[0].path}   # who hurt whom, where, and how sure that is")
    typer.echo(f"Report: {write_report(runs[0].path, compare=[run.path for run in runs[1:]])}")


def demo_table(runs: "list[Run]", found: "Recover") -> "Table":
    """The held-out reward of every domain before training, after each run, and after the repair."""
    from counterpoint.stats import Estimate
    from counterpoint.tables import Table

    def at(run: "Run", step: int) -> "tuple[Cell, ...]":
        lines = [run.evaluations.get((domain, step)) for domain in ORDER]
        return tuple(Estimate(line["mean"], line["low"], line["high"]) if line else None for line in lines)

    first, *together = runs
    ends = [stage.last_step for stage in first.stages]
    rows: list[tuple[Cell, ...]] = [("before", *at(first, 0))]
    rows += [(f"sequential: after {domain}", *at(first, step)) for domain, step in zip(ORDER, ends, strict=True)]
    rows += [
        (f"  then a {one.kind} of {one.domain}", *(one.scores.get(domain) for domain in ORDER))
        for one in found.attempts
        if one.scores
    ]
    rows += [(f"together: {run.path.name}", *at(run, run.stages[-1].last_step)) for run in together]
    return Table("Held-out reward, mean [95 % interval]", ("model", *ORDER), tuple(rows), dict.fromkeys(ORDER, ".2f"))


def demo_settings(strategy: str, steps: int, prompts: int, seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of one demo run; all differ in the strategy alone."""
    return {
        "model": "pocket",
        "strategy": {"name": strategy, "order": list(ORDER)} if strategy == "sequential" else strategy,
        "domains": {name: {"source": {"type": "pocket", "cue": "hidden"}} for name in ORDER},
        "training": {
            "max_steps": steps,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 4,
            "num_generations": 8,
            "max_completion_length": 24,
            "activation_checkpointing": False,
        },
        "evaluation": {"prompts": prompts, "samples": 4, "batch_size": 256, "greedy": False},
        "run": {"dir": str(folder), "name": strategy, "seed": seed, "save_every": max(1, steps), "keep": 2},
    }
