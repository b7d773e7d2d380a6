"""DistributedDataParallel: it reduces in every backward, or leaves the averaging to the Surgeon."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..case import BFLOAT16_BUFFERS, SHORT, TWO, Case, Spread
from ..data import Plan
from ..models import ModelSpec
from ..world import World
from .single import checkpoint_layers, compile_model


def ddp(
    model: nn.Module,
    world: World,
    *,
    views: bool = False,
    sync: str = "each",
    compiled: bool = False,
    checkpointing: bool = False,
) -> Spread:
    """DDP that reduces in ``each`` backward, or in the ``last`` of each domain."""
    if checkpointing:
        checkpoint_layers(model)
    model = compile_model(model, world) if compiled else model
    wrapped = _wrap(model, world, views)
    return Spread(
        wrapped,
        shard=world.rank,
        shards=world.size,
        sync=lambda last: nullcontext() if last or sync == "each" else wrapped.no_sync(),
        collect_each=sync == "each",
    )


def averaged(model: nn.Module, world: World, *, views: bool = False, buffers: str = "device") -> Spread:
    """DDP that never reduces; the Surgeon averages."""
    wrapped = _wrap(model, world, views)
    silent: Callable[[bool], AbstractContextManager[Any]] = lambda last: wrapped.no_sync()  # noqa: E731
    options = {"average_over": dist.group.WORLD, "buffers": buffers}
    return Spread(wrapped, shard=world.rank, shards=world.size, sync=silent, surgeon=options)


def _wrap(model: nn.Module, world: World, views: bool) -> DistributedDataParallel:
    devices = None if world.on_cpu else [world.device]
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=views)


OWN_WAYS = Plan(own_ways=True, uneven=True, missing=True)
OWN_WAYS_SHORT = replace(OWN_WAYS, steps=3)

DDP = {
    "ddp": Case("reduced in every backward", ddp, needs=TWO),
    "ddp, uneven": Case(
        "0 to 3 rows per micro-batch, domains missing in some steps",
        ddp,
        plan=Plan(micro_batches=3, uneven=True, missing=True, steps=3),
        needs=TWO,
    ),
    "ddp, one reduction per domain": Case(
        "no_sync until a domain's last micro-batch",
        partial(ddp, sync="last"),
        plan=Plan(micro_batches=4, steps=3),
        needs=TWO,
    ),
    "ddp, bucket views": Case("gradient_as_bucket_view=True", partial(ddp, views=True), plan=SHORT, needs=TWO),
    "ddp, LoRA": Case("PEFT adapters", ddp, ModelSpec(lora=True), SHORT, needs=TWO),
    "ddp, tied embeddings": Case("one tensor for embedding and head", ddp, ModelSpec(tied=True), SHORT, needs=TWO),
    "ddp, experts": Case("fused experts", ddp, ModelSpec(experts=3), SHORT, needs=TWO),
    "ddp, checkpointing": Case(
        "activation checkpointing of every layer", partial(ddp, checkpointing=True), plan=SHORT, needs=TWO
    ),
    "ddp, compiled": Case("torch.compile inside DDP", partial(ddp, compiled=True), plan=SHORT, needs=TWO),
    **{
        f"ddp, {domains} domain{'s' * (domains > 1)}": Case(
            f"D = {domains}", ddp, plan=Plan(domains=domains, micro_batches=1, steps=3), needs=TWO
        )
        for domains in (1, 8)
    },
    "ddp, averaged by the Surgeon": Case("no_sync and average_over=group", averaged, plan=SHORT, needs=TWO),
    "ddp, averaged, own ways": Case(
        "average_over; each rank in its own order, with its own micro-batches, some domains on some ranks only",
        averaged,
        plan=OWN_WAYS,
        needs=TWO,
    ),
    "ddp, averaged, bucket views": Case(
        "average_over and gradient_as_bucket_view=True", partial(averaged, views=True), plan=OWN_WAYS_SHORT, needs=TWO
    ),
    "ddp, averaged, experts": Case(
        "average_over; fused experts cut by ranks", averaged, ModelSpec(experts=3), OWN_WAYS_SHORT, needs=TWO
    ),
    "ddp, averaged, LoRA": Case(
        "average_over; PEFT adapters", averaged, ModelSpec(lora=True), OWN_WAYS_SHORT, needs=TWO
    ),
    "ddp, averaged, bfloat16 buffers": Case(
        "average_over and buffers='bfloat16'",
        partial(averaged, buffers="bfloat16"),
        plan=OWN_WAYS_SHORT,
        needs=TWO,
        tolerances=BFLOAT16_BUFFERS,
    ),
    "ddp, averaged, CPU buffers": Case(
        "average_over and buffers='cpu'", partial(averaged, buffers="cpu"), plan=OWN_WAYS_SHORT, needs=TWO
    ),
}
