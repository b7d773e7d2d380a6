"""``counterpoint groups``: what a grouping makes of a model, from its configuration alone."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import nn


def groups(
    model: Annotated[
        str, typer.Argument(help="Model folder, hub id, or 'pocket'. Only its configuration is read, no weights.")
    ],
    grouping: Annotated[
        str,
        typer.Option(
            "--grouping",
            "-g",
            help="As `counterpoint config reference` lists them, or your own as package.module:function.",
        ),
    ] = "module",
    lora: Annotated[
        bool,
        typer.Option(
            "--lora", help="Show the groups of LoRA adapters on all linear layers, not of the model's own weights."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Print the groups into which gradient surgery cuts a model, with their sizes.

    Examples:

      counterpoint groups pocket

      counterpoint groups Qwen/Qwen3-0.6B --grouping layer
    """
    from counterpoint.cli.running import quiet_libraries

    quiet_libraries()
    named = _meta_model(model, lora)
    sizes = _group_sizes(named, grouping)
    if json:
        _print_json(model, grouping, sizes)
    else:
        _print_table(model, grouping, sizes)


def _meta_model(model: str, lora: bool) -> "nn.Module":
    """The model on the meta device: names and shapes without memory."""
    from transformers import AutoConfig

    from counterpoint.config import LoraConfig, ModelConfig
    from counterpoint.models import described_model, resolve_path, with_adapters

    chosen = ModelConfig(path=model, lora=LoraConfig(target_modules="all-linear") if lora else None)
    choices = "a folder with a config.json, a hub id, or 'pocket'"
    built = described_model(model, lambda: AutoConfig.from_pretrained(resolve_path(chosen)), choices)
    return with_adapters(chosen, built)


def _group_sizes(model: "nn.Module", grouping: str) -> dict[str, tuple[int, int]]:
    """Number of tensors (or slices of one) and of parameters of every group, in model order."""
    from counterpoint.surgery import group_parameters

    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    for name, pieces in group_parameters(model, grouping).items():
        for group in pieces:
            tensors[group] += 1
            parameters[group] += sizes[name] // len(pieces)
    return {group: (tensors[group], parameters[group]) for group in tensors}


def _print_json(model: str, grouping: str, sizes: dict[str, tuple[int, int]]) -> None:
    import json

    rows = [{"group": group, "tensors": tensors, "parameters": count} for group, (tensors, count) in sizes.items()]
    total = sum(count for _, count in sizes.values())
    typer.echo(json.dumps({"model": model, "grouping": grouping, "parameters": total, "groups": rows}, indent=2))


def _print_table(model: str, grouping: str, sizes: dict[str, tuple[int, int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    total = sum(count for _, count in sizes.values())
    table = Table(title=f"{model}: {len(sizes)} groups ({grouping})", title_justify="left")
    table.add_column("group", style="bold", overflow="fold")
    for column in ("tensors", "parameters", "share"):
        table.add_column(column, justify="right")
    for group, (tensors, count) in sizes.items():
        table.add_row(group, str(tensors), f"{count:,}", f"{count / total:.1%}")
    table.add_section()
    table.add_row("total", str(sum(tensors for tensors, _ in sizes.values())), f"{total:,}", "100.0%")
    Console().print(table)
