"""A plan in words: rows of a table, and a sentence on what fits."""

from collections.abc import Iterable
from dataclasses import dataclass

from .memory import message_bytes
from .plan import GIB, Plan, RankPlan, first_fit

NAMES = {"one process": "one process", "ddp": "DDP", "fsdp2": "FSDP2"}

TOTAL = "all but activations"

WAITING = {"device": "on the device", "bfloat16": "in bfloat16", "cpu": "in host memory"}


@dataclass(frozen=True)
class Table:
    """A title and rows, each a label and a cell per back end."""

    title: str
    rows: list[tuple[str, list[str]]]


def size(num_bytes: float) -> str:
    """``22.4 GiB``, in the unit that reads best."""
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def unit_of(sizes: Iterable[float]) -> tuple[str, int]:
    """The unit in which a table of these sizes reads best."""
    return ("GiB", GIB) if max(sizes, default=0) >= GIB / 10 else ("MiB", 2**20)


def number(num_bytes: float, factor: int = GIB) -> str:
    """``22.43`` of a unit of ``factor`` bytes, a dash for nothing."""
    value = num_bytes / factor
    if not num_bytes:
        return "-"
    return f"{value:,.1f}" if value >= 100 else f"{value:.2f}" if value >= 0.01 else "<0.01"


def backend_name(rank: RankPlan, plan: Plan) -> str:
    """The back end as people call it: FSDP2 with replicas is HSDP."""
    hybrid = rank.backend == "fsdp2" and plan.setup.num_shards < plan.setup.gpus
    return f"HSDP {plan.setup.gpus // plan.setup.num_shards}x{plan.setup.num_shards}" if hybrid else NAMES[rank.backend]


def headline(plan: Plan) -> str:
    """Model, weights, strategy and machines, in two lines."""
    model, setup, surgery = plan.model, plan.setup, plan.surgery
    frozen = f", {model.num_frozen:,} frozen" if model.num_frozen else ""
    gpus = f"{setup.gpus} GPU" + "s" * (setup.gpus > 1)
    return (
        f"{model.label}: {model.num_trained:,} trained parameters{frozen}; {gpus}\n"
        f"{surgery.strategy}, {setup.domains} domains: {surgery.vectors} gradients of {surgery.units:,} units in "
        f"{surgery.groups:,} groups; {setup.batches} micro-batches per GPU and step"
    )


def memory_table(plan: Plan) -> Table:
    """What a GPU holds under each back end; rows of nothing are left out."""
    extra = plan.surgery.kept(plan.setup.batches) - 1
    what = f"{extra} more gradient{'s' * (extra != 1)} {WAITING[plan.setup.buffers]}"
    rows = [
        ("frozen weights", [rank.frozen for rank in plan.ranks]),
        ("trained weights", [rank.weights for rank in plan.ranks]),
        ("gradient", [rank.gradient for rank in plan.ranks]),
        ("AdamW's moments", [rank.moments for rank in plan.ranks]),
        ("DDP's buckets", [rank.ddp_buckets for rank in plan.ranks]),
        ("unsharded gradient, between reductions", [rank.unsharded_gradient for rank in plan.ranks]),
        (f"surgery: {what}", [rank.surgery for rank in plan.ranks]),
        (TOTAL, [rank.device for rank in plan.ranks]),
        ("host memory for surgery, pinned", [rank.host for rank in plan.ranks]),
    ]
    unit, factor = unit_of(rank.device for rank in plan.ranks)
    cells = [(label, [number(cell, factor) for cell in cells]) for label, cells in rows if any(cells)]
    return Table(f"per GPU, {unit}", cells)


def traffic_table(plan: Plan, bandwidth: float | None = None) -> Table:
    """What a GPU sends per step to reduce gradients, under each back end.

    ``bandwidth``, in bytes per second that one GPU can send, adds the seconds that sending takes at least.
    """
    products = size(message_bytes(plan.surgery.units, plan.surgery.vectors))
    labels = {
        "no surgery": "one reduction, no surgery",
        "every micro-batch": f"reducing every micro-batch ({plan.setup.batches})",
        "surgery": f"surgery ({plan.surgery.vectors} gradients)",
        "inner products": f"inner products: one sum of {products}",
    }
    unit, factor = unit_of(max(rank.sent.values()) for rank in plan.ranks)
    rows = []
    for key, label in labels.items():
        cells = [number(rank.sent[key], factor) for rank in plan.ranks]
        if bandwidth is not None:
            times = [seconds(rank.sent[key] / bandwidth) for rank in plan.ranks]
            cells = [f"{cell} ({time})" for cell, time in zip(cells, times, strict=True)]
        rows.append((label, cells))
    return Table(f"sent per GPU and step, {unit}", rows)


def seconds(value: float) -> str:
    """``1.3 s``, ``45 ms``."""
    return f"{value:,.1f} s" if value >= 1 else f"{value * 1e3:.0f} ms" if value >= 1e-3 else "<1 ms"


def verdicts(plan: Plan, limit: int) -> Iterable[str]:
    """One sentence per back end: whether it fits into ``limit`` bytes, and if not what would."""
    for rank in plan.ranks:
        yield f"{backend_name(rank, plan)}: {_verdict(plan, rank, limit)}"


def _verdict(plan: Plan, rank: RankPlan, limit: int) -> str:
    if rank.device <= limit:
        host = f", with {size(rank.host)} of pinned host memory" if rank.host else ""
        left = f"{size(limit - rank.device)} are left for activations"
        return f"fits into {size(limit)}: it needs {size(rank.device)}{host}, and {left}."
    too_much = f"{size(rank.device)} do not fit into {size(limit)}."
    other = first_fit(plan.model, plan.setup, rank.backend, limit)
    if other is not None:
        changes = []
        if other.buffers != rank.buffers:
            changes.append(f"buffers: {other.buffers}")
        if other.sync_each_batch != rank.sync_each_batch:
            changes.append("sync_each_batch: true")
        host = f" and {size(other.host)} of pinned host memory" if other.host else ""
        return f"{too_much} {' and '.join(changes)} would fit, with {size(other.device)}{host}."
    instead = "Shard over more GPUs, or train LoRA adapters."
    if rank.backend != "fsdp2":
        instead = "Use FSDP2 on several GPUs, or train LoRA adapters."
    least = rank.training - rank.unsharded_gradient
    if least > limit:
        return f"{too_much} Training alone needs {size(least)}, so no kind of buffers helps. {instead}"
    return f"{too_much} No kind of buffers makes it fit. {instead}"
