"""``counterpoint verify``: whether domain gradients are exact on this machine, or this cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from counterpoint.verification import Case, Control, World


def verify(
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda. Default: cuda where there is a GPU for every process.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64: of parameters and gradients.")] = "float32",
    domains: Annotated[
        int, typer.Option("--domains", min=2, max=16, help="Number of domains in cases that do not set it.")
    ] = 3,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Only cases whose names begin like this. Can be given again.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this file.")] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="Print the names of all cases and planted bugs.")] = False,
) -> None:
    """Check that every domain's gradient is exact on your set-up: run it first on a new machine or cluster.

    Trains tiny models under DDP, FSDP2, HSDP, tensor parallelism and LoRA, and compares gradients, inner products,
    weights and trained parameters with one process that holds all the data. Takes about a minute. Exit status 1 where
    anything is not exact.

    Examples:

      counterpoint verify

      torchrun --nproc-per-node 2 -m counterpoint verify

      torchrun --nproc-per-node 4 -m counterpoint verify --only fsdp2 --only hsdp
    """
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries(offline=True)
    if list_cases:
        _print_names()
        return
    from counterpoint.verification import open_world, run_suite, select

    cases, controls = select(only or ())
    with open_world(device, dtype, domains) as world:
        if world.rank == 0:
            failed = _run_and_print(world, cases, controls, json)
        else:
            failed = bool(run_suite(world, cases, controls).failed)
        world.gather(failed)  # torchrun ends all ranks when one has failed, and the first must have printed by then
    if failed:
        raise typer.Exit(1)


def _run_and_print(world: "World", cases: "dict[str, Case]", controls: "dict[str, Control]", json: Path | None) -> bool:
    """Whether anything failed; what the first rank does, with progress on the terminal."""
    from json import dumps

    from rich.console import Console

    from counterpoint.verification import run_suite
    from counterpoint.verification.table import print_report, report_json

    with Console(stderr=True).status("Starting") as status:
        report = run_suite(world, cases, controls, status.update)
    print_report(report)
    if json:
        json.write_text(dumps(report_json(report), indent=1))
    return bool(report.failed)


def _print_names() -> None:
    from counterpoint.verification import CASES, CONTROLS

    for title, entries in (("Cases", CASES), ("Planted bugs", CONTROLS)):
        typer.echo(f"{title}:")
        for name, entry in entries.items():  # type: ignore[attr-defined]
            typer.echo(f"  {name:40}{entry.what}")
