"""``counterpoint diagnose conflicts``: where the gradients of two domains oppose each other, beyond noise."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.errors import CounterpointError

if TYPE_CHECKING:
    from counterpoint.config import Config


def conflicts(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Checkpoint folder, hub id, or pocket: where gradients are measured."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="Configuration file, or run directory, with the domains."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="Instead of MODEL and CONFIG: the Grams of this run, over its steps."
        ),
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", metavar="NAME", help="Only this domain. Repeatable; default: all.")
    ] = None,
    batches: Annotated[
        int, typer.Option(min=1, help="Batches of each domain; none share a prompt. 8 or 16 are good numbers.")
    ] = 16,
    splits: Annotated[
        int | None,
        typer.Option(min=1, help="Independent splits they are gathered in, at least 4. Default: batches, up to 16."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts sampled per domain.")] = 128,
    samples: Annotated[int, typer.Option(min=2, help="Completions per prompt.")] = 8,
    completions: Annotated[
        Path | None,
        typer.Option("--completions", metavar="FILE", help="Completions an analysis saved, instead of sampling."),
    ] = None,
    optimizer: Annotated[
        Path | None,
        typer.Option(
            "--optimizer",
            metavar="CHECKPOINT",
            help="The optimizer.pt to measure after Adam with. Default: MODEL's own, where it has one.",
        ),
    ] = None,
    adam: Annotated[bool, typer.Option(help="Measure after Adam too, where its state is there.")] = True,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="GROUPING",
            help="Groups the tables show: layer, module, tensor, or package.module:function. "
            "Default: the configuration's own grouping where that is one of these, else module. JSON holds all.",
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="False discovery rate over groups and pairs.")] = 0.05,
    repeats: Annotated[int, typer.Option(min=1, help="Draws of each control.")] = 20,
    window: Annotated[int, typer.Option(min=1, help="With --run: steps of the moving average.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sampling and controls.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Completions in one backward pass.")] = 32,
    memory_gib: Annotated[
        float, typer.Option("--memory-gib", help="For sums of gradients; less needs more passes over the completions.")
    ] = 4.0,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Also write everything there, as JSON, and sampled completions beside it (FILE.completions.jsonl).",
        ),
    ] = None,
) -> None:
    """Show which parts of a model two domains pull in opposite directions, and what noise alone would show.

    Policy gradients of every domain on many batches that share no prompt; cosines with and without noise; tests
    corrected for their number; and the same pipeline on shuffled labels and on noise alone, where it must find nothing.

    Examples:

      counterpoint diagnose conflicts pocket examples/pocket-mgs.yaml

      counterpoint diagnose conflicts runs/mixed/checkpoints/step-60 runs/mixed --json conflicts.json

      counterpoint diagnose conflicts --run runs/mixed
    """
    if not 0 < level < 1:
        raise CounterpointError(f"--level {level:g} is no rate. Give a number between 0 and 1, e.g. 0.05.")
    if run is not None:
        _refuse_both(model)
        _over_time(run, window, level, by or "module", json)
        return
    if model is None or config is None:
        raise CounterpointError(
            "Nothing to measure. Give a model and a configuration (counterpoint diagnose conflicts MODEL CONFIG), or a "
            "run whose steps are looked at (--run RUN)."
        )
    from counterpoint.cli.progress import ConsoleReporter
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    from counterpoint.cli.diagnose.conflicts_tables import print_conflicts
    from counterpoint.diagnosis import conflicts as measure
    from counterpoint.diagnosis import write_result
    from counterpoint.diagnosis.conflict_analysis.grams import check_splits
    from counterpoint.diagnosis.conflict_analysis.metric import (
        adam_metric,
        read_optimizer,
        state_beside,
        trained_shapes,
    )
    from counterpoint.diagnosis.subject import completions_for, config_of, open_subject

    check_splits(batches, splits)
    if domain and len(set(domain)) < 2:
        raise CounterpointError(f"A conflict is between two domains; found --domain {domain[0]} alone. Name another.")
    groupings, shown = _groupings(config_of(config), by)
    given = read_optimizer(optimizer) if optimizer is not None and adam else None
    subject = open_subject(config, model, domain)
    if given is not None:
        adam_metric(given, trained_shapes(subject.model))  # does it fit? before anything is sampled
    state, reason = state_beside(model, subject.model) if adam and given is None else (given, "")
    if reason:
        typer.echo(f"Not measured after Adam: {reason}", err=True)
    with ConsoleReporter() as reporter:
        rollouts = completions_for(
            subject,
            file=completions,
            prompts=prompts,
            samples=samples,
            seed=seed,
            at_least=batches,
            save=json.with_name(f"{json.name}.completions.jsonl") if json else None,
            on_progress=reporter.working,
        )
        found = measure(
            subject.model,
            rollouts,
            groupings=groupings,
            batches=batches,
            splits=splits,
            optimizer_state=state,
            level=level,
            repeats=repeats,
            seed=seed,
            rows=rows,
            memory_gib=memory_gib,
            on_progress=reporter.working,
        )
    if json is not None:
        write_result(json, "conflicts", found)
    print_conflicts(found, shown)


def _groupings(config: "Config", by: str | None) -> tuple[list[str], str]:
    """What is measured, and what the tables show: the built-in groupings, the configuration's own, and ``by``."""
    from counterpoint.surgery import GROUPINGS, resolve_strategy

    own = "module" if config.strategy.sequential else str(resolve_strategy(config.strategy.spec).grouping)
    found = dict.fromkeys((*GROUPINGS, own, *([by] if by else [])))
    return list(found), by or ("module" if own in ("global", "layer") else own)


def _refuse_both(model: str | None) -> None:
    if model is not None:
        raise CounterpointError(
            f"--run looks at the steps of a run and takes no model; found {model!r}. Leave one of the two out."
        )


def _over_time(run: Path, window: int, level: float, by: str, json: Path | None) -> None:
    from counterpoint.cli.diagnose.conflicts_tables import print_over_time
    from counterpoint.diagnosis import conflicts_over_time, write_result

    if by not in ("module", "layer"):
        raise CounterpointError(f"--by {by}: a run records its Grams by module. Give --by module or --by layer.")
    found = conflicts_over_time(run, window=window, level=level)
    if json is not None:
        write_result(json, "conflicts_over_time", found)
    print_over_time(found, by)
