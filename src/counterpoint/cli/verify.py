"""``counterpoint verify``: whether domain gradients are exact on this machine, or this cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from counterpoint.verify import Outcome, World

QUANTITIES = ("gradients", "Grams", "weights", "parameters")


def verify(
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda. Default: cuda where there is a GPU for every process.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option("--dtype", help="Of parameters and gradients.")
    ] = "float32",
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only cases and bugs whose names begin like this. Can be given again."),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")] = None,
) -> None:
    """Check that every domain's gradient is exact on your set-up: run it first on a new machine or cluster.

    Eight tiny trainings, ddp, averaged, fsdp2, hsdp, lora, buffers, experts and tensor parallel, are compared with one
    process that holds all the data: every domain's gradient, their inner products, the weights of surgery, the
    parameters after three steps, and whether all ranks hold the same bits. Four bugs are planted, and must be seen:
    orders differ, last batch only, Grams of shards, unseeded order.

    Takes about a minute. What needs more ranks than there are is not run, and said to be not run. Exit status 1 where
    anything is not exact; do not train before you know why.

    Examples:

        torchrun --nproc-per-node 2 -m counterpoint verify
        torchrun --nproc-per-node 4 -m counterpoint verify --only fsdp2 --only hsdp
        torchrun --nproc-per-node 8 -m counterpoint verify --json report.json
    """
    from counterpoint.cli._console import quiet_libraries

    quiet_libraries(offline=True)
    from rich.console import Console

    from counterpoint.verify import open_world, run_suite, select

    cases = select(only or ())
    with open_world(device, dtype) as world:
        with Console(stderr=True, quiet=world.rank > 0).status("Starting") as status:
            outcomes = run_suite(world, cases, status.update)
        if world.rank == 0:
            _print(outcomes, world)
            if json:
                _write(json, outcomes, world)
        world.gather(None)  # torchrun ends all ranks when one has failed, and the first must have printed by then
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(1)


def _print(outcomes: "list[Outcome]", world: "World") -> None:
    """The table, what was not run, what failed, and one sentence."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not console.is_terminal:
        console = Console(width=118)
    run = [outcome for outcome in outcomes if outcome.status != "not run"]
    failed = [outcome for outcome in run if outcome.status == "failed"]
    if run:
        console.print(_table(run, _place(world)))
    for note in dict.fromkeys(outcome.note for outcome in outcomes if outcome.status == "not run"):
        names = "; ".join(outcome.name for outcome in outcomes if outcome.note == note)
        console.print(f"Not run, {note}: {names}.", highlight=False, markup=False)
    for outcome in failed:
        console.print(f"[bold red]{outcome.name}[/]: {escape(outcome.note) or 'beyond its tolerance, see the table'}")
    console.print(
        _sentence(run, _place(world)), style="bold green" if run and not failed else "bold red", highlight=False
    )


def _sentence(run: "list[Outcome]", place: str) -> str:
    if not run:
        return f"Nothing was run on {place}: start more ranks with torchrun --nproc-per-node."
    cases, bugs = ([outcome for outcome in run if bool(outcome.seen_by) == is_bug] for is_bug in (False, True))
    held, seen = (sum(outcome.status != "failed" for outcome in part) for part in (cases, bugs))
    verdict = "Exact" if held + seen == len(run) else "Not exact"
    seconds = sum(outcome.seconds for outcome in run)
    return (
        f"{verdict} on {place}: {held} of {len(cases)} cases held, {seen} of {len(bugs)} planted bugs were seen, "
        f"in {seconds:.0f} s."
    )


def _place(world: "World") -> str:
    import torch

    name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return f"{world.size} rank{'s' * (world.size > 1)}, {name}, {str(world.dtype).removeprefix('torch.')}"


def _table(outcomes: "list[Outcome]", place: str) -> "Table":
    from rich.table import Table

    table = Table(title=f"Exactness on {place}: relative errors", title_justify="left")
    table.add_column("case, or planted bug", overflow="fold")
    for header in (
        "",
        *(f"{name}\n<= {outcomes[0].tolerances[name]:.0e}" for name in QUANTITIES),
        "ranks\ndiffer in",
        "s",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for before, outcome in zip([None, *outcomes], outcomes, strict=False):
        if outcome.seen_by and before and not before.seen_by:
            table.add_section()
        style = "bold red" if outcome.status == "failed" else "green"
        errors = [_cell(outcome, name) for name in (*QUANTITIES, "copies")]
        name = f"[bold]{outcome.name}[/]: {outcome.what}"
        table.add_row(name, f"[{style}]{outcome.status}[/]", *errors, f"{outcome.seconds:.1f}")
    return table


def _cell(outcome: "Outcome", quantity: str) -> str:
    if quantity not in outcome.errors or outcome.seen_by not in ("", quantity):
        return ""
    error = outcome.errors[quantity]
    text = f"{error:.0f}" if quantity == "copies" else f"{error:.1e}"
    return text if error <= outcome.tolerances[quantity] else f"[bold]{text}[/]"


def _write(path: Path, outcomes: "list[Outcome]", world: "World") -> None:
    from dataclasses import asdict
    from json import dumps

    import torch

    everything = {
        "exact": all(outcome.status != "failed" for outcome in outcomes),
        "ranks": world.size,
        "device": str(world.device),
        "dtype": str(world.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    path.write_text(dumps(everything, indent=1) + "\n")
