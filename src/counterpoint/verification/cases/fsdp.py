"""FSDP2 (``fully_shard``): layers and root, with its policies; and HSDP, which shards inside groups of ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from ..case import BFLOAT16_BUFFERS, BFLOAT16_COMPUTE, SHORT, TWO, Case, Spread, always_sync, ranks_from
from ..data import Plan
from ..models import ModelSpec, layers_of
from ..world import World
from .single import checkpoint_layers, compile_layers


def fsdp(
    model: nn.Module,
    world: World,
    *,
    sync: str = "each",
    replicas: int = 1,
    checkpointing: bool = False,
    compiled: bool = False,
    buffers: str = "device",
    **options: Any,
) -> Spread:
    """Every layer and the root fully sharded; with ``replicas`` as many copies of the model (HSDP)."""
    if checkpointing:
        checkpoint_layers(model)
    if compiled:
        compile_layers(model, world)
    inside = world.size // replicas
    hybrid = replicas > 1
    mesh = world.mesh((replicas, inside), ("replicate", "shard")) if hybrid else world.mesh((inside,), ("shard",))
    shard_layers(model, mesh, **options)
    return Spread(
        model,
        shard=world.rank,
        shards=world.size,
        sync=partial(_reduced, model) if sync == "last" else always_sync,
        collect_each=sync == "each",
        surgeon={"buffers": buffers},
    )


def shard_layers(model: nn.Module, mesh: Any, **options: Any) -> None:
    """``fully_shard`` of every layer, then of what is left."""
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def offloaded(model: nn.Module, world: World, **options: Any) -> Spread:
    """Parameters, gradients and optimizer in host memory; the copies' collectives need gloo beside nccl."""
    return fsdp(model, world, offload_policy=CPUOffloadPolicy(pin_memory=not world.on_cpu), **options)


@contextmanager
def _reduced(model: nn.Module, last: bool) -> Iterator[None]:
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(last)
    yield


HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
UNEVEN_MODEL = ModelSpec(hidden=5, heads=1, intermediate=7, experts=3)
"""Nothing divides by the number of ranks, and the gate of one row leaves all ranks but one without a part."""

FSDP = {
    "fsdp2": Case("fully_shard of layers and root, reduced in every backward", fsdp, needs=TWO),
    "fsdp2, uneven rows": Case(
        "0 to 3 rows per micro-batch, domains missing in some steps",
        fsdp,
        plan=Plan(micro_batches=3, uneven=True, missing=True, steps=3),
        needs=TWO,
    ),
    "fsdp2, uneven shards": Case(
        "sizes that ranks do not divide, ranks without a part, fused experts cut inside",
        fsdp,
        UNEVEN_MODEL,
        Plan(micro_batches=1),
        needs=TWO,
    ),
    "fsdp2, experts": Case("fused experts cut between ranks", fsdp, ModelSpec(experts=4), SHORT, needs=TWO),
    "fsdp2, one reduction per domain": Case(
        "set_requires_gradient_sync(False) until a domain's last micro-batch",
        partial(fsdp, sync="last"),
        plan=Plan(micro_batches=4, steps=3),
        needs=TWO,
    ),
    "fsdp2, no reshard": Case(
        "reshard_after_forward=False", partial(fsdp, reshard_after_forward=False), plan=SHORT, needs=TWO
    ),
    "fsdp2, mixed precision": Case(
        "bfloat16 forward and backward, float32 reduction, against the same arithmetic in one process",
        partial(fsdp, mp_policy=HALF),
        plan=Plan(micro_batches=1, steps=3),
        needs=TWO,
        compute=torch.bfloat16,
        tolerances=BFLOAT16_COMPUTE,
    ),
    "fsdp2, CPU offload": Case("CPUOffloadPolicy", offloaded, plan=SHORT, needs=TWO),
    "fsdp2, checkpointing": Case(
        "activation checkpointing of every layer", partial(fsdp, checkpointing=True), plan=SHORT, needs=TWO
    ),
    "fsdp2, compiled": Case(
        "torch.compile of every layer inside fully_shard", partial(fsdp, compiled=True), plan=SHORT, needs=TWO
    ),
    "fsdp2, tied embeddings": Case("one tensor for embedding and head", fsdp, ModelSpec(tied=True), SHORT, needs=TWO),
    "fsdp2, LoRA": Case("PEFT adapters", fsdp, ModelSpec(lora=True), SHORT, needs=TWO),
    "fsdp2, 8 domains": Case("D = 8", fsdp, plan=Plan(domains=8, micro_batches=1, steps=3), needs=TWO),
    "fsdp2, bfloat16 buffers": Case(
        "buffers='bfloat16'", partial(fsdp, buffers="bfloat16"), plan=SHORT, needs=TWO, tolerances=BFLOAT16_BUFFERS
    ),
    "fsdp2, CPU buffers": Case("buffers='cpu'", partial(fsdp, buffers="cpu"), plan=SHORT, needs=TWO),
    "hsdp": Case(
        "2 copies of the model, each sharded",
        partial(fsdp, replicas=2),
        UNEVEN_MODEL,
        Plan(micro_batches=1),
        needs=ranks_from(4, multiple=2),
    ),
    "hsdp, CPU offload, checkpointing, uneven rows": Case(
        "both policies on 2 copies of the model; 0 to 3 rows per micro-batch, domains missing in some steps",
        partial(offloaded, replicas=2, checkpointing=True),
        plan=Plan(micro_batches=3, uneven=True, missing=True, steps=3),
        needs=ranks_from(4, multiple=2),
    ),
    "hsdp, LoRA": Case(
        "PEFT adapters",
        partial(fsdp, replicas=2),
        ModelSpec(lora=True),
        SHORT,
        needs=ranks_from(4, multiple=2),
    ),
}
