"""``counterpoint demo``: two domains that hurt each other, seen, prevented and repaired, in minutes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from counterpoint.recovery import Recover
    from counterpoint.runs.run import Run
    from counterpoint.tables import Cell, Table

ORDER = ("short", "long")
RUNS = {
    "sequential": ("sequential", "plain"),
    "together": ("mixed", "plain"),
    "mixed": ("mixed", "hidden"),
    "mgs": ("mgs", "hidden"),
}
"""Name of a run -> its strategy, and the cue that tells the two domains apart."""


def demo(
    steps: Annotated[int, typer.Option("--steps", min=2, help="Optimizer steps of each run.")] = 40,
    prompts: Annotated[int, typer.Option("--prompts", min=2, max=64, help="Held-out prompts per domain.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order of prompts and of sampling.")] = 100,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where the runs go.", show_default="a new folder below runs/"),
    ] = None,
) -> None:
    """Watch two domains hurt each other, and what helps, on the built-in pocket model.

    One domain wants short answers, the other long ones, to one family of prompts. First a plain cue tells them apart: trained one after the other, the first one falls, and a short refresh brings it back; trained together, neither falls. Then the cue is hidden, and training together starves one of them, unless surgery prevents it. All runs have the same start and budget.

    Prints a table with 95 % intervals and the paths of two report pages. Needs no network. Two to four minutes on two cores.
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
        f"Two domains that want short and long answers to one family of prompts, four runs of {steps} steps: {folder}"
    )
    runs = {}
    for name in RUNS:
        config = parse_config(demo_settings(name, steps, prompts, seed, folder))
        with progress(label=name) as reporter:
            runs[name] = Run.open(train(config, name, reporter).path)
    refresh = RefreshOptions(steps=max(1, steps // 2), every=max(1, steps // 4), protect=ORDER[1:])
    with progress(label="recover") as reporter:
        options = RecoverOptions("refresh", refresh=refresh)
        found = recover(runs["sequential"].path, options=options, reporter=reporter, on_progress=reporter.working)
    reporter.console.print(demo_table(runs, found))
    for sentence in found.sentences():
        typer.echo(sentence)
    typer.echo("\nOne seed of a toy model; another one: --seed 103. How often it comes out so: docs/study-weight.md")
    typer.echo(f"Next: counterpoint diagnose {runs['sequential'].path}   # who hurt whom, where, and how sure that is")
    for name, beside in (("sequential", "together"), ("mixed", "mgs")):
        typer.echo(f"Report: {write_report(runs[name].path, compare=[runs[beside].path])}")


def demo_table(runs: "Mapping[str, Run]", found: "Recover") -> "Table":
    """The held-out reward of every domain before training, after each run, and after the repair."""
    from counterpoint.cli.train import score_cell
    from counterpoint.tables import Table

    def row(cue: str, model: str, run: "Run", step: int) -> "tuple[Cell, ...]":
        return cue, model, *(score_cell(run.evaluations.get((domain, step))) for domain in ORDER)

    first = runs["sequential"]
    rows = [row("plain", "before", first, 0)]
    rows += [row("", f"sequential: after {stage.domains[0]}", first, stage.last_step) for stage in first.stages]
    rows += [
        ("", f"  then a {one.kind} of {one.domain}", *(one.scores.get(domain) for domain in ORDER))
        for one in found.attempts
        if one.scores
    ]
    rows.append(row("", "together: mixed", runs["together"], runs["together"].stages[-1].last_step))
    rows.append(row("hidden", "before", runs["mixed"], 0))
    rows += [row("", f"together: {name}", runs[name], runs[name].stages[-1].last_step) for name in ("mixed", "mgs")]
    columns = ("cue", "model", *ORDER)
    return Table("Held-out reward, mean [95 % interval]", columns, tuple(rows), dict.fromkeys(ORDER, ".2f"))


def demo_settings(name: str, steps: int, prompts: int, seed: int, folder: Path) -> dict[str, Any]:
    """The configuration of one demo run; all differ in strategy and cue alone."""
    strategy, cue = RUNS[name]
    return {
        "model": "pocket",
        "strategy": {"name": strategy, "order": list(ORDER)} if strategy == "sequential" else strategy,
        "domains": {domain: {"source": {"type": "pocket", "cue": cue}} for domain in ORDER},
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
        "run": {"dir": str(folder), "name": name, "seed": seed, "save_every": max(1, steps), "keep": 2},
    }
