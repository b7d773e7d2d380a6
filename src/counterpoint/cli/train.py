"""``counterpoint train`` and ``counterpoint demo``: one configuration to a better model, and the same in minutes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterpoint.errors import ConfigError

if TYPE_CHECKING:
    from counterpoint.engine import Reporter
    from counterpoint.runs import RunDirectory
    from counterpoint.tables import Cell, Table

STRATEGIES = ("mixed", "mgs")


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration file (YAML). See `counterpoint config schema`.", show_default=False),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace one key of the file. Repeatable."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Continue this run from its last checkpoint."),
    ] = None,
) -> None:
    """Train one model on several domains.

    Everything is checked before training starts. The run directory (`run.dir`/`run.name`) holds metrics, evaluations,
    samples, checkpoints and report.html. Ctrl-C saves; so does a kill, up to the last checkpoint.

    A resumed run gives the numbers of one that was never stopped. With `--set training.max_steps=200` beside
    `--resume` a finished run is made longer.

    Examples:

        counterpoint train examples/pocket-mgs.yaml
        counterpoint train my.yaml --set strategy=mixed --set run.name=baseline
        counterpoint train --resume runs/pocket-mgs
        torchrun --nproc-per-node 2 -m counterpoint train my.yaml
    """
    from counterpoint.cli._console import one_rank_speaks, quiet_libraries

    quiet_libraries()
    with one_rank_speaks():
        _train(config, overrides or (), resume)


def _train(config: Path | None, overrides: Sequence[str], resume: Path | None) -> None:
    if (config is None) == (resume is None):
        raise ConfigError("Give either a configuration file or --resume RUN, not both and not neither.")
    from counterpoint.cli._console import load
    from counterpoint.engine import train

    if resume is not None:
        resume_run(resume, overrides)
        return
    assert config is not None
    loaded = load(config, overrides)
    _with_progress(lambda reporter: train(loaded, loaded.run.name or config.stem, reporter))


def resume_run(path: Path, longer: Sequence[str] = ()) -> None:
    """Continues the run at ``path`` with progress; a refresh goes on with its own result.

    ``longer`` holds the settings that make a finished run longer.
    """
    from counterpoint.engine import resume
    from counterpoint.runs import RunDirectory

    if not longer and "refresh" in RunDirectory.open(path, write=False).state:
        from counterpoint.cli.recover import shown
        from counterpoint.recovery import continue_refresh

        shown(lambda reporter, _: continue_refresh(path, reporter), path)
        return
    _with_progress(lambda reporter: resume(path, reporter, longer=longer))


def _with_progress(work: "Callable[[Reporter], RunDirectory]") -> None:
    """Shows the progress of ``work``, its table and the path of its report; silent on every rank but the first."""
    from rich.console import Console

    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.engine import Interrupted, Reporter
    from counterpoint.launch import rank_of_environment
    from counterpoint.report import write_report

    if rank_of_environment():
        work(Reporter())
        return
    with ConsoleReporter() as reporter:
        try:
            run = work(reporter)
        except Interrupted as stop:
            reporter.message(f"Saved. Continue with: counterpoint train --resume {stop.run.path}")
            raise KeyboardInterrupt from stop
    console = Console()
    console.print(run_table([run]))
    if verdict := verdict_of(run):
        reporter.message(verdict)
    reporter.message(f"Report: {write_report(run.path)}")


def verdict_of(run: "RunDirectory") -> str:
    """Which domains of a sequential run fell since their own stage; empty for any other run."""
    from counterpoint.runs.run import Run

    return Run.open(run.path).verdict()


def run_table(runs: "Sequence[RunDirectory]") -> "Table":
    """Every domain before and after each run; of one sequential run also after the domain's own stage.

    The functions of a domain's reward stand below it.
    """
    from counterpoint.tables import Table

    columns = _columns(runs)
    domains = list(dict.fromkeys(name for lines in columns.values() for name in lines))
    rows: list[tuple[Cell, ...]] = []
    for domain in domains:
        lines = [found.get(domain, {}) for found in columns.values()]
        rows.append((domain, *(_score(line) for line in lines)))
        parts = dict.fromkeys(name for line in lines for name in line.get("parts") or ())
        rows += [(f"  {part}", *((line.get("parts") or {}).get(part) for line in lines)) for part in parts]
        metrics = dict.fromkeys(name for line in lines for name in line.get("metrics") or ())
        rows += [(f"  metric {name}", *((line.get("metrics") or {}).get(name) for line in lines)) for name in metrics]
    if len(domains) > 1:
        rows.append(("average", *(_average(found) for found in columns.values())))
    forms = dict.fromkeys(columns, ".3f")
    return Table("Held-out reward, mean [95 % interval]", ("domain", *columns), tuple(rows), forms)


def _columns(runs: "Sequence[RunDirectory]") -> "dict[str, dict[str, Mapping[str, Any]]]":
    """Evaluation lines by what the column is called and the domain."""
    from counterpoint.runs.run import Run

    first = runs[0]
    found = {"before": scores_at(first, "before")}
    judged = Run.open(first.path)
    if len(runs) == 1 and judged.at_the_end:
        end = scores_at(first, "after")
        own = {one.domain: judged.evaluations[one.domain, one.first_step] for one in judged.at_the_end}
        found |= {"after its own stage": end | own, "at the end": end}
    else:
        found |= {run.path.name: scores_at(run, "after") for run in runs}
    return {name: lines for name, lines in found.items() if lines or name != "before"}


def scores_at(run: "RunDirectory", when: str) -> dict[str, Mapping[str, Any]]:
    """The run's evaluation lines by domain at ``before`` or ``after``."""
    return {line["domain"]: line for line in run.lines("evals.jsonl") if line["when"] == when}


def _score(line: Mapping[str, Any]) -> "Cell":
    from counterpoint.stats import Estimate

    return Estimate(line["mean"], line["low"], line["high"]) if line else None


def _average(lines: Mapping[str, Mapping[str, Any]]) -> float | None:
    return sum(line["mean"] for line in lines.values()) / len(lines) if lines else None


def demo(
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps of each run.")] = 60,
    prompts: Annotated[int, typer.Option("--prompts", min=2, help="Held-out prompts per domain.")] = 128,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", help="Where the two runs go.", show_default="a new folder below runs/"),
    ] = None,
) -> None:
    """Train the built-in pocket model with `mixed` and with `mgs`, from the same start.

    Prints a table (domains x before, mixed, mgs, 95 % intervals) and the path of a report page. Needs no network. Two
    to eight minutes on two cores.
    """
    import time

    from rich.console import Console

    from counterpoint.cli._console import ConsoleReporter, quiet_libraries
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
    Console().print(run_table(runs))
    typer.echo("One seed of a toy model: it shows that the tool works, not which strategy is better.")
    typer.echo(f"Report: {write_report(runs[-1].path, compare=[run.path for run in runs[:-1]])}")


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
