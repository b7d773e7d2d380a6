"""``counterpoint config``: check a configuration file, print its JSON schema and what every key and name means."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from counterpoint.cli._console import Overrides
from counterpoint.cli._weights import Lengths, read_lengths, say_weights
from counterpoint.errors import ConfigError, listed

if TYPE_CHECKING:
    from counterpoint.config import Config

app = typer.Typer(help="Check a configuration file, or print what it may hold.", no_args_is_help=True)


@app.command()
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file.")],
    overrides: Overrides = None,
    lengths: Lengths = None,
    show: Annotated[bool, typer.Option("--show", help="Print the file with every default filled in.")] = False,
) -> None:
    """Check all that `counterpoint train` can check before it loads a model, and say what training would do.

    Everything wrong with CONFIG is reported at once, each problem with its line, its key and what to do: the keys under
    `training` by TRL's own configuration, then the model's groups, tokenizer, data, rewards, extras, trackers, shares,
    and the place of the run.
    """
    from counterpoint.cli._console import load, quiet_libraries

    quiet_libraries()
    checked = load(config, overrides)
    known = None if lengths is None else read_lengths(lengths, checked.domains)
    from counterpoint.engine.prepare import check_config, needed_bytes, plan_checked
    from counterpoint.runs import check_place

    if problems := check_config(checked):
        raise ConfigError(listed(f"{config}: the configuration has", problems))
    plan = plan_checked(checked)
    place = Path(checked.run.dir) / (checked.run.name or config.stem)
    needed = needed_bytes(plan)
    check_place(place, needed)
    memory = check_memory(checked)
    if show:
        typer.echo(checked.to_yaml(), nl=False)
        return
    for domain in plan.domains:
        typer.echo(f"{domain.name}: {domain.summary}")
    stages = "" if len(plan.stages) == 1 else f" in {len(plan.stages)} stages"
    typer.echo(
        f"{config}: fine. Strategy {checked.strategy.label}, {plan.total_steps} steps{stages}, "
        f"{plan.num_params / 1e6:,.1f} million parameters, run {place} (checkpoints take up to {needed / 1e9:.1f} GB)."
    )
    typer.echo(memory)
    say_weights(checked, known)


def check_memory(config: "Config") -> str:
    """What weights, gradients, AdamW and surgery take, beside what the device has: in one process, or where that is too
    much cut up over the GPUs of this machine. On a machine without a GPU that `run.device` does not keep to the CPU,
    nothing is too much: training may be started elsewhere.

    Raises:
        ConfigError: they alone do not fit.
    """
    import torch

    from counterpoint.cli.plan import setup_of
    from counterpoint.engine.prepare import uses_cpu
    from counterpoint.plan import Backend, Setup, make_plan, model_shapes, size, verdict

    on_cpu = uses_cpu(config)
    gpus = 1 if on_cpu else torch.accelerator.device_count()
    if on_cpu:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        total = torch.accelerator.get_memory_info()[1]
    shapes = model_shapes(config.model)
    ways: dict[int, Backend] = {1: "one process"}
    if gpus > 1:
        ways[gpus] = "fsdp2"
    for count, backend in ways.items():
        plan = make_plan(shapes, setup_of(config, Setup(count, gpu_memory=total)), (backend,))
        (rank,) = plan.ranks
        if rank.device <= total:
            how = "" if count == 1 else f" on each of {count} GPUs with FSDP2, and too much for one"
            return f"Memory: {size(rank.device)} of {size(total)}{how}, before activations and generation."
    if on_cpu and config.run.device != "cpu":
        return f"Memory: {size(rank.device)} for one process; `counterpoint plan` says what several GPUs need."
    raise ConfigError(f"Memory: {verdict(plan, rank, total)}")


@app.command()
def reference() -> None:
    """Print every setting, strategy, grouping, weighting and balance, with types, limits and defaults, as Markdown."""
    from counterpoint.config.reference import balances, settings, strategies

    typer.echo(f"{settings()}\n{strategies()}\n{balances()}", nl=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration file; editors complete and check YAML by it."""
    import json

    from counterpoint.config import config_schema

    typer.echo(json.dumps(config_schema(), indent=2))
