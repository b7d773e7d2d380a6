"""``counterpoint train``: one configuration to a better model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from counterpoint.cli._console import Overrides
from counterpoint.errors import ConfigError

if TYPE_CHECKING:
    from counterpoint.cli._console import ConsoleReporter
    from counterpoint.runs import RunDirectory
    from counterpoint.runs.run import Run
    from counterpoint.tables import Cell, Table


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="Configuration file (YAML). See `counterpoint config schema`.", show_default=False),
    ] = None,
    overrides: Overrides = None,
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
    from counterpoint.cli._console import load, progress, quiet_libraries

    quiet_libraries()
    with progress() as reporter:
        if resume is not None and config is None:
            _resume(resume, overrides or (), reporter)
        elif config is not None and resume is None:
            loaded = load(config, overrides)  # a mistake is told before what takes seconds to import
            from counterpoint.engine import train as train_run

            _tell(train_run(loaded, loaded.run.name or config.stem, reporter), reporter)
        else:
            raise ConfigError("Give either a configuration file or --resume RUN, not both and not neither.")


def _resume(path: Path, longer: "Sequence[str]", reporter: "ConsoleReporter") -> None:
    """Continues the run at ``path``, a refresh with its own result; ``longer`` are settings that make a run longer."""
    from counterpoint.engine import resume
    from counterpoint.runs import RunDirectory

    if longer or "refresh" not in RunDirectory.open(path, write=False).state:
        _tell(resume(path, reporter, longer=longer), reporter)
        return
    from counterpoint.recovery import continue_refresh

    reporter.show(continue_refresh(path, reporter))
    reporter.report(path)


def _tell(run: "RunDirectory", reporter: "ConsoleReporter") -> None:
    """Prints a run's table, what each domain weighed, what fell since its own stage, and the path of its report."""
    from counterpoint.runs.run import Run

    if reporter.speaks:
        reporter.console.print(run_table(run))
        opened = Run.open(run.path)
        _tell_weights(opened, run.config_path, reporter)
        if verdict := opened.verdict():
            reporter.message(verdict)
        reporter.report(run.path)


def _tell_weights(run: "Run", config: Path, reporter: "ConsoleReporter") -> None:
    """Prints what each domain weighed, and what to do where that is far from its share."""
    from counterpoint.runs.weights import mean_weights

    weighed = mean_weights(run.metrics)
    if weights := weights_table(run.domains, weighed):
        reporter.console.print(weights)
    if advice := weights_advice(config, weighed):
        reporter.message(advice)


def weights_table(domains: "Sequence[str]", found: "Mapping[str, Mapping[str, float]]") -> "Table | None":
    """What each domain weighed, as ``mean_weights`` has it; None for a run without steps of several domains."""
    from counterpoint.tables import Table

    if not found:
        return None
    rows = tuple(
        (name, *(100 * shares[name] if name in shares else None for shares in found.values())) for name in domains
    )
    return Table(
        "Who trained the model, % of all, mean over steps", ("domain", *found), rows, dict.fromkeys(found, ".0f")
    )


def weights_advice(file: Path, found: "Mapping[str, Mapping[str, float]]") -> str | None:
    """What to do where domains weighed far from their shares without being balanced; None where nothing need be."""
    from counterpoint.balance import DEFAULT_LOSS, out_of_balance
    from counterpoint.config import load_config

    config = load_config(file)
    weighed = config.balance.name != "none" or config.curriculum or any(entry.weights for entry in config.schedule)
    if weighed or "loss" not in found:  # no token of any step was in a loss
        return None
    return out_of_balance(found["loss"], found["prompts"], str(config.training.get("loss_type", DEFAULT_LOSS)))


def run_table(run: "RunDirectory") -> "Table":
    """Every domain before and after the run; of a sequential one also after the domain's own stage.

    The functions of a domain's reward stand below it.
    """
    from counterpoint.tables import Table

    columns = _columns(run)
    domains = list(dict.fromkeys(name for lines in columns.values() for name in lines))
    rows: list[tuple[Cell, ...]] = []
    for domain in domains:
        lines = [found.get(domain, {}) for found in columns.values()]
        rows.append((domain, *(score_cell(line) for line in lines)))
        parts = dict.fromkeys(name for line in lines for name in line.get("parts") or ())
        rows += [(f"  {part}", *((line.get("parts") or {}).get(part) for line in lines)) for part in parts]
        metrics = dict.fromkeys(name for line in lines for name in line.get("metrics") or ())
        rows += [(f"  metric {name}", *((line.get("metrics") or {}).get(name) for line in lines)) for name in metrics]
    if len(domains) > 1:
        rows.append(("average", *(_average(found) for found in columns.values())))
    forms = dict.fromkeys(columns, ".3f")
    return Table("Held-out reward, mean [95 % interval]", ("domain", *columns), tuple(rows), forms)


def _columns(run: "RunDirectory") -> "dict[str, dict[str, Mapping[str, Any]]]":
    """Evaluation lines by what the column is called and the domain."""
    from counterpoint.runs.run import Run

    before, after = _scores_at(run, "before"), _scores_at(run, "after")
    judged = Run.open(run.path)
    found = {"before": before} if before else {}
    if not judged.at_the_end:
        return found | {run.path.name: after}
    own = {one.domain: judged.evaluations[one.domain, one.first_step] for one in judged.at_the_end}
    return found | {"after its own stage": after | own, "at the end": after}


def _scores_at(run: "RunDirectory", when: str) -> dict[str, Mapping[str, Any]]:
    return {line["domain"]: line for line in run.lines("evals.jsonl") if line["when"] == when}


def score_cell(line: Mapping[str, Any] | None) -> "Cell":
    """The mean of a line of ``evals.jsonl`` with its interval; nothing where there is no line."""
    from counterpoint.stats import Estimate

    return Estimate(line["mean"], line["low"], line["high"]) if line else None


def _average(lines: Mapping[str, Mapping[str, Any]]) -> float | None:
    return sum(line["mean"] for line in lines.values()) / len(lines) if lines else None
