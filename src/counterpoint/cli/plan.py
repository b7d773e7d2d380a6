"""``counterpoint plan``: whether training with surgery fits into your GPUs, before anyone rents them."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from counterpoint.cli._weights import Lengths, read_lengths, say_weights
from counterpoint.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from counterpoint.config import Config, ModelConfig
    from counterpoint.plan import Plan, RankPlan, Setup

TOTAL = "all but activations"
WAITING = {"device": "on the device", "bfloat16": "in bfloat16", "cpu": "in host memory"}


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="0.5B, 8B or 70B (the shapes of Qwen2.5-0.5B, Llama-3.1-8B and -70B), pocket, a checkpoint folder, "
            "its config.json, a hub id, or a counterpoint configuration (YAML)."
        ),
    ],
    gpus: Annotated[int, typer.Option("--gpus", "-n", min=1, help="GPUs in all, over all nodes.")] = 1,
    domains: Annotated[
        int | None, typer.Option("--domains", "-d", min=1, help="Domains in a step.", show_default="2")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", "-s", help="As `counterpoint config reference` lists them.", show_default="mgs"),
    ] = None,
    buffers: Annotated[
        Literal["device", "bfloat16", "cpu"] | None,
        typer.Option("--buffers", help="Where domain gradients wait.", show_default="device"),
    ] = None,
    shards: Annotated[
        int | None, typer.Option("--shards", min=1, help="FSDP2 over replicas (HSDP): GPUs that hold one replica.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option("--dtype", help="Type the model is loaded in.", show_default="float32"),
    ] = None,
    lora_r: Annotated[int | None, typer.Option("--lora-r", min=1, help="Train LoRA adapters of this rank.")] = None,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", min=0.0, help="Memory of one GPU in GiB.")] = 80.0,
    grouping: Annotated[
        str | None,
        typer.Option(
            "--groups",
            metavar="GROUPING",
            help="Print the groups of this grouping with their sizes instead: module, "
            "tensor, layer, or your own as package.module:function.",
        ),
    ] = None,
    lengths: Lengths = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write what is printed to this file as well.")] = None,
) -> None:
    """Print what training and surgery need on every GPU, whether it fits, and what would make it fit.

    Exact counts from the model's shapes; no weights are loaded. Activations are not counted. Whatever has no option
    here, such as micro-batches, the modules of LoRA, the reference model of a KL term, vLLM and reward models, is read
    from a configuration.

    Examples:

        counterpoint plan 8B --gpus 8 --domains 3
        counterpoint plan 70B --gpus 64 --shards 8 --domains 4 --buffers cpu
        counterpoint plan examples/pocket-mgs.yaml --gpus 2
        counterpoint plan Qwen/Qwen3-0.6B --groups module
    """
    from counterpoint.cli._console import quiet_libraries
    from counterpoint.config import LoraConfig, ModelConfig
    from counterpoint.plan import GIB, Setup, make_plan, model_shapes

    if shards is not None and gpus % shards:
        raise ConfigError(f"--shards {shards}: {gpus} GPUs cannot be cut into replicas of {shards}. Give a divisor.")
    quiet_libraries()
    config = _config(model)
    if lengths is not None and config is None:
        raise ConfigError(f"--lengths: {model} is no counterpoint configuration, which says what the domains are.")
    weighed = (config, read_lengths(lengths, config.domains)) if lengths is not None and config is not None else None
    setup = Setup(gpus, shards=shards, gpu_memory=int(gpu_memory * GIB))
    chosen, setup = (ModelConfig(path=model), setup) if config is None else (config.model, setup_of(config, setup))
    if lora_r is not None:
        chosen = chosen.model_copy(update={"lora": LoraConfig(r=lora_r)})
    if grouping is not None:
        _show_groups(chosen, grouping, json)
        return
    given: dict[str, Any] = {"domains": domains, "strategy": strategy, "buffers": buffers, "dtype": dtype}
    setup = replace(setup, **{name: value for name, value in given.items() if value is not None})
    found = make_plan(model_shapes(chosen), setup, ("one process",) if gpus == 1 else ("ddp", "fsdp2"))
    _show(found)
    if weighed is not None:
        say_weights(*weighed)
    if json is not None:
        _write(json, found.to_dict())


def _show_groups(model: "ModelConfig", grouping: str, file: Path | None) -> None:
    from rich.console import Console

    from counterpoint.plan import group_sizes
    from counterpoint.tables import Table

    sizes = group_sizes(model, grouping)
    total = sum(count for _, count in sizes.values())
    rows = [(group, tensors, count, 100 * count / total) for group, (tensors, count) in sizes.items()]
    rows.append(("total", sum(tensors for tensors, _ in sizes.values()), total, 100.0))
    title = f"{model.path}: {len(sizes)} groups ({grouping})"
    Console().print(Table(title, ("group", "tensors", "parameters", "%"), tuple(rows), {"%": ".1f"}))
    if file is not None:
        groups = [{"group": group, "tensors": tensors, "parameters": count} for group, tensors, count, _ in rows[:-1]]
        _write(file, {"model": model.path, "grouping": grouping, "parameters": total, "groups": groups})


def _write(file: Path, content: dict[str, Any]) -> None:
    from json import dumps

    file.write_text(dumps(content, indent=2) + "\n", encoding="utf-8")


def _config(model: str) -> "Config | None":
    """The counterpoint configuration that ``model`` names, None where it names a model."""
    from counterpoint.cli._console import load

    return load(Path(model)) if Path(model).suffix in (".yaml", ".yml") else None


def setup_of(config: "Config", setup: "Setup") -> "Setup":
    """``setup`` with what a configuration says.

    Raises:
        ConfigError, ModelError: as ``companions_of``.
    """
    from counterpoint.companions import companions_of

    sequential = config.strategy.sequential  # a stage holds one domain, and there is nothing to combine
    return replace(
        setup,
        domains=1 if sequential else len(config.domains),
        strategy=config.strategy.within_a_stage,
        buffers=config.surgery.buffers,
        dtype=config.model.dtype,
        sync_each_batch=setup.sync_each_batch or _syncs_each_batch(config.training),
        micro_batches=config.training.get("gradient_accumulation_steps"),
        mixed_precision=config.training.get("bf16", setup.mixed_precision),
        companions=companions_of(config, setup.gpus),
    )


def _syncs_each_batch(training: dict[str, Any]) -> bool:
    accelerator = training.get("accelerator_config")
    accumulation = accelerator.get("gradient_accumulation_kwargs") if isinstance(accelerator, dict) else None
    return bool(accumulation.get("sync_each_batch")) if isinstance(accumulation, dict) else False


def _show(plan: "Plan") -> None:
    from rich.console import Console

    from counterpoint.plan import verdict

    model, setup, surgery = plan.model, plan.setup, plan.surgery
    frozen = f", {model.num_frozen:,} frozen" if model.num_frozen else ""
    typer.echo(
        f"{model.label}: {model.num_trained:,} trained parameters{frozen}; {setup.gpus} GPU{'s' * (setup.gpus > 1)}\n"
        f"{surgery.strategy}, {setup.domains} domains: {surgery.vectors} gradients of {surgery.units:,} units in "
        f"{surgery.groups:,} groups; {setup.batches} micro-batches per GPU and step"
    )
    console = Console()
    console.print(_table(plan))
    verdicts = [f"{_name(rank, plan)}: {verdict(plan, rank, setup.gpu_memory)}" for rank in plan.ranks]
    for sentence in (*_companions(plan), *verdicts):
        typer.echo(textwrap.fill(sentence, min(100, console.width), subsequent_indent="  "))


def _companions(plan: "Plan") -> list[str]:
    """One sentence for the reference model, one for vLLM, and one for each reward model."""
    from counterpoint.plan import size

    others, sentences = plan.setup.companions, []
    if others.kl:
        sentences.append(
            "KL term (beta above 0): no reference model, adapters are switched off for it."
            if plan.model.frozen
            else "KL term (beta above 0): a reference model, one more copy of the weights."
        )
    if others.vllm == "colocate":
        when = "while it generates" if others.vllm_sleeps else "all the time"
        taken = size(others.vllm_share * plan.setup.gpu_memory)
        sentences.append(f"vLLM: {taken} of each GPU ({others.vllm_share:.0%}), {when}.")
    elif others.vllm == "server":
        weights = size(2 * (plan.model.num_trained + plan.model.num_frozen))
        sentences.append(f"vLLM: a server on other GPUs, not counted here ({weights} of weights in bfloat16).")
    for model in others.reward_models:
        copies = f"{model.copies} copies of " if model.copies > 1 else ""
        where = f"{model.place}, not counted here" if model.place in ("other GPUs", "the host") else model.place
        sentences.append(f"Reward model {model.label}: {copies}{size(model.num_bytes)} on {where}.")
    return sentences


def _table(plan: "Plan") -> "Table":
    """What a GPU holds under each back end; rows of nothing are left out."""
    from rich.table import Table

    from counterpoint.plan import GIB

    extra = plan.surgery.kept(plan.setup.batches) - 1
    at_once = not any(rank.vllm_sleeps or rank.reference_gathered for rank in plan.ranks)
    total = TOTAL if at_once else f"{TOTAL}, at the fullest moment"
    labels = {
        "frozen": "frozen weights",
        "weights": "trained weights",
        "gradient": "gradient",
        "moments": "AdamW's moments",
        "ddp_buckets": "DDP's buckets",
        "unsharded_gradient": "unsharded gradient, between reductions",
        "surgery": f"surgery: {extra} more gradient{'s' * (extra != 1)} {WAITING[plan.setup.buffers]}",
        "reference": "reference model",
        "reference_gathered": "reference model, gathered to score",
        "reward_models": "reward models",
        "vllm": "vLLM, while it generates" if plan.setup.companions.vllm_sleeps else "vLLM",
        "device": total,
        "host": "host memory for surgery, pinned",
    }
    in_gib = max(rank.device for rank in plan.ranks) >= GIB / 10
    table = Table("per GPU, GiB" if in_gib else "per GPU, MiB")
    for rank in plan.ranks:
        table.add_column(_name(rank, plan), justify="right")
    for key, label in labels.items():
        values = [getattr(rank, key) for rank in plan.ranks]
        if any(values):
            cells = [_number(value / (GIB if in_gib else 2**20)) for value in values]
            table.add_row(label, *cells, style="bold" if label == total else None)
    return table


def _number(value: float) -> str:
    if not value:
        return "-"
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}" if value >= 0.01 else "<0.01"


def _name(rank: "RankPlan", plan: "Plan") -> str:
    """The back end as people call it: FSDP2 with replicas is HSDP."""
    shards = plan.setup.num_shards(rank.backend)
    if rank.backend == "fsdp2" and shards < plan.setup.gpus:
        return f"HSDP {plan.setup.gpus // shards}x{shards}"
    return {"one process": "one process", "ddp": "DDP", "fsdp2": "FSDP2"}[rank.backend]
