"""``counterpoint plan``: what surgery will need, before anyone rents a cluster."""

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from counterpoint.errors import ConfigError

if TYPE_CHECKING:
    from counterpoint.planning import Backend, Lora, ModelShapes, Plan, Setup

Buffers = Literal["device", "bfloat16", "cpu"]
GIGABYTE = 1e9


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        help="0.5B, 8B or 70B (the shapes of Qwen2.5-0.5B, Llama-3.1-8B and -70B), pocket, a checkpoint folder, "
        "its config.json, a hub id, or a counterpoint configuration (YAML).",
        show_default=False,
    ),
]
GPUsOption = Annotated[int, typer.Option("--gpus", "-n", min=1, help="GPUs in all, over all nodes.")]
DomainsOption = Annotated[
    int | None, typer.Option("--domains", "-d", min=1, help="Domains in a step.", show_default="2")
]
StrategyOption = Annotated[
    str | None,
    typer.Option(
        "--strategy", "-s", help="Name of a strategy; `counterpoint config reference` lists them.", show_default="mgs"
    ),
]
BuffersOption = Annotated[
    Buffers | None,
    typer.Option("--buffers", help="Where domain gradients wait.", show_default="device"),
]
BackendOption = Annotated[Literal["auto", "ddp", "fsdp2"], typer.Option("--backend", help="auto shows both.")]
ShardsOption = Annotated[
    int | None,
    typer.Option("--shards", min=1, help="FSDP2 over replicas (HSDP): GPUs that one replica is sharded over."),
]
MicroBatchesOption = Annotated[
    int | None,
    typer.Option(
        "--micro-batches",
        min=1,
        help="gradient_accumulation_steps.",
        show_default="4 per domain",
    ),
]
SyncEachBatchOption = Annotated[
    bool, typer.Option("--sync-each-batch", help="FSDP2 reduces after every micro-batch, not once per domain.")
]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option("--dtype", help="Type the model is loaded in.", show_default="float32"),
]
MixedPrecisionOption = Annotated[
    Literal["bf16", "no"], typer.Option("--mixed-precision", help="As in the configuration of accelerate.")
]
LoraROption = Annotated[int | None, typer.Option("--lora-r", min=1, help="Train LoRA adapters of this rank.")]
LoraTargetsOption = Annotated[
    str | None,
    typer.Option("--lora-targets", help="all-linear, or modules with commas.", show_default="PEFT's choice"),
]
GPUMemoryOption = Annotated[float, typer.Option("--gpu-memory", min=0.0, help="Memory of one GPU in GiB.")]
BandwidthOption = Annotated[
    float | None,
    typer.Option("--bandwidth", min=0.001, help="GB/s that one GPU sends; adds the seconds at least spent on sending."),
]
JSONOption = Annotated[Path | None, typer.Option("--json", help="Write the plan to this file as well.")]
TableOption = Annotated[bool, typer.Option("--table", help="Print the table of docs/distributed.md instead.")]


def plan(
    model: ModelArgument = None,
    gpus: GPUsOption = 1,
    domains: DomainsOption = None,
    strategy: StrategyOption = None,
    buffers: BuffersOption = None,
    backend: BackendOption = "auto",
    shards: ShardsOption = None,
    micro_batches: MicroBatchesOption = None,
    sync_each_batch: SyncEachBatchOption = False,
    dtype: DtypeOption = None,
    mixed_precision: MixedPrecisionOption = "bf16",
    lora_r: LoraROption = None,
    lora_targets: LoraTargetsOption = None,
    gpu_memory: GPUMemoryOption = 80.0,
    bandwidth: BandwidthOption = None,
    json: JSONOption = None,
    table: TableOption = False,
) -> None:
    """Print what training and surgery need per GPU: memory, numbers, and bytes sent per step.

    Exact counts from the model's shapes; no weights are loaded. Activations are not counted.

    Examples:

      counterpoint plan 8B --gpus 8 --domains 3

      counterpoint plan 70B --gpus 64 --domains 4 --buffers cpu --backend fsdp2

      counterpoint plan examples/pocket-mgs.yaml --gpus 2
    """
    from counterpoint.cli.running import quiet_libraries
    from counterpoint.planning import Lora, Setup, markdown_table

    quiet_libraries()
    if table:
        typer.echo(markdown_table(gpu_memory))
        return
    if model is None:
        raise ConfigError("There is no model to plan for. Give 0.5B, 8B, 70B, a checkpoint or a configuration.")
    if lora_targets and lora_r is None:
        raise ConfigError("--lora-targets names modules for LoRA adapters. Give their rank too: --lora-r 16.")
    if shards is not None and gpus % shards:
        raise ConfigError(f"--shards {shards}: {gpus} GPUs cannot be cut into replicas of {shards}. Give a divisor.")
    targets = lora_targets.split(",") if lora_targets and "," in lora_targets else lora_targets
    lora = Lora(lora_r, targets) if lora_r is not None else None
    setup = Setup(gpus, sync_each_batch=sync_each_batch, mixed_precision=mixed_precision == "bf16", shards=shards)
    shapes, setup = _resolve(model, setup, lora)
    given = {
        "domains": domains,
        "strategy": strategy,
        "buffers": buffers,
        "micro_batches": micro_batches,
        "dtype": dtype,
    }
    setup = replace(setup, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    _show(_plan(shapes, setup, backend), gpu_memory, bandwidth, json)


def _resolve(model: str, setup: "Setup", lora: "Lora | None") -> tuple["ModelShapes", "Setup"]:
    """The model's shapes, and the set-up with what a counterpoint configuration says."""
    from counterpoint.planning import Lora, model_shapes
    from counterpoint.pocket import model_path

    def shapes_of(path: str, **options: Any) -> "ModelShapes":
        return model_shapes(
            str(model_path()) if path == "pocket" else path, label="pocket" if path == "pocket" else None, **options
        )

    if Path(model).suffix not in (".yaml", ".yml"):
        return shapes_of(model, lora=lora), setup
    from counterpoint.cli.loading import load

    config = load(Path(model))
    chosen = config.model
    if lora is None and chosen.lora is not None:
        lora = Lora(chosen.lora.r, chosen.lora.target_modules)
    shapes = shapes_of(chosen.path, lora=lora, revision=chosen.revision, trust_remote_code=chosen.trust_remote_code)
    sequential = config.strategy.sequential  # a stage holds one domain, and there is nothing to combine
    return shapes, replace(
        setup,
        domains=1 if sequential else len(config.domains),
        strategy="mixed" if sequential else config.strategy.spec,
        buffers=config.surgery.buffers,
        dtype=chosen.dtype,
        sync_each_batch=setup.sync_each_batch or _syncs_each_batch(config.training),
        micro_batches=config.training.get("gradient_accumulation_steps"),
        mixed_precision=config.training.get("bf16", setup.mixed_precision),
    )


def _syncs_each_batch(training: dict[str, Any]) -> bool:
    accelerator = training.get("accelerator_config")
    accumulation = accelerator.get("gradient_accumulation_kwargs") if isinstance(accelerator, dict) else None
    return bool(accumulation.get("sync_each_batch")) if isinstance(accumulation, dict) else False


def _plan(shapes: "ModelShapes", setup: "Setup", backend: str) -> "Plan":
    from counterpoint.planning import make_plan

    backends: tuple[Backend, ...] = ("ddp", "fsdp2")
    if setup.gpus == 1:
        backends = ("one process",)
    elif backend != "auto":
        backends = ("ddp",) if backend == "ddp" else ("fsdp2",)
    return make_plan(shapes, setup, backends)


def _show(plan: "Plan", gpu_memory: float, bandwidth: float | None, file: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from counterpoint.planning import GIB, words

    typer.echo(words.headline(plan))
    tables = [words.memory_table(plan)]
    if plan.setup.gpus > 1:
        tables.append(words.traffic_table(plan, None if bandwidth is None else bandwidth * GIGABYTE))
    for table in tables:
        grid = Table()
        grid.add_column(table.title)
        for rank in plan.ranks:
            grid.add_column(words.backend_name(rank, plan), justify="right")
        for label, cells in table.rows:
            grid.add_row(label, *cells, style="bold" if label == words.TOTAL else None)
        Console().print(grid)
    for sentence in words.verdicts(plan, int(gpu_memory * GIB)):
        typer.echo(textwrap.fill(sentence, min(100, Console().width), subsequent_indent="  "))
    if file is not None:
        import json

        file.write_text(json.dumps(plan.to_dict(), indent=2) + "\n", encoding="utf-8")
