"""A plan in words: rows of a table, and a sentence on what fits."""

from collections.abc import Iterable

from .memory import gram_bytes
from .plan import GIB, Plan, RankPlan, first_fit

NAMES = {"one process": "one process", "ddp": "DDP", "fsdp2": "FSDP2"}

WAITING = {"device": "on the device", "bfloat16": "in bfloat16", "cpu": "in host memory"}


def size(num_bytes: float) -> str:
    """``22.4 GiB``, in the unit that reads best."""
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def gib(num_bytes: float) -> str:
    """``22.43`` GiB, a dash for nothing; small numbers keep two digits."""
    value = num_bytes / GIB
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


def memory_rows(plan: Plan) -> list[tuple[str, list[str]]]:
    """What a GPU holds: label, and GiB under each back end; rows of nothing are left out."""
    extra = plan.surgery.vectors - 1
    waiting = WAITING[plan.setup.buffers]
    rows = [
        ("frozen weights", [rank.frozen for rank in plan.ranks]),
        ("trained weights", [rank.weights for rank in plan.ranks]),
        ("gradient", [rank.gradient for rank in plan.ranks]),
        ("AdamW's moments", [rank.moments for rank in plan.ranks]),
        ("DDP's buckets", [rank.ddp_buckets for rank in plan.ranks]),
        ("unsharded gradient, between reductions", [rank.unsharded_gradient for rank in plan.ranks]),
        (f"surgery: {extra} more gradients {waiting}", [rank.surgery for rank in plan.ranks]),
        ("all but activations", [rank.device for rank in plan.ranks]),
        ("host memory for surgery, pinned", [rank.host for rank in plan.ranks]),
    ]
    return [(label, [gib(cell) for cell in cells]) for label, cells in rows if any(cells)]


def traffic_rows(plan: Plan, bandwidth: float | None = None) -> list[tuple[str, list[str]]]:
    """What a GPU sends per step to reduce gradients: label, and GiB under each back end (with seconds where asked).

    ``bandwidth`` is what one GPU can send, in bytes per second.
    """
    labels = {
        "no surgery": "one reduction, no surgery",
        "every micro-batch": f"reducing every micro-batch ({plan.setup.batches})",
        "surgery": f"surgery ({plan.surgery.vectors} gradients)",
        "inner products": f"inner products, {size(gram_bytes(plan.surgery.units, plan.surgery.vectors))}",
    }
    rows = []
    for key, label in labels.items():
        sent = [rank.sent.get(key, 0.0) for rank in plan.ranks]
        if any(sent):
            rows.append((label, [_sent(cell, bandwidth) for cell in sent]))
    return rows


def _sent(num_bytes: float, bandwidth: float | None) -> str:
    return gib(num_bytes) if bandwidth is None else f"{gib(num_bytes)} ({seconds(num_bytes / bandwidth)})"


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
    instead = "Use FSDP2 on several GPUs, or LoRA." if rank.backend != "fsdp2" else "Use more GPUs, or LoRA."
    if rank.training > limit:
        return f"{too_much} Training alone needs {size(rank.training)}, so no kind of buffers helps. {instead}"
    return f"{too_much} No kind of buffers makes it fit. {instead}"
