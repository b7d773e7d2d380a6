"""Tensor parallelism: Shard and Replicate in one mesh, alone and under FSDP2."""

from functools import partial
from typing import Any

from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ..case import SHORT, Case, Spread, ranks_from
from ..data import Plan
from ..models import LanguageModel, ModelSpec, layers_of
from ..world import World
from .fsdp import shard_layers

WIDTH = 2
"""Ranks that share a layer where FSDP2 shards as well."""


def tensor_parallel(model: nn.Module, world: World, *, sequence: bool = False) -> Spread:
    """All ranks share every layer and see the same data."""
    parallelize(model, world.mesh((world.size,), ("tensor",)), sequence)
    return Spread(model)


def both(model: nn.Module, world: World, *, sequence: bool = False) -> Spread:
    """Pairs of ranks share every layer, and FSDP2 shards over the pairs."""
    mesh = world.mesh((world.size // WIDTH, WIDTH), ("shard", "tensor"))
    parallelize(model, mesh["tensor"], sequence)
    shard_layers(model, mesh["shard"])
    return Spread(model, shard=mesh["shard"].get_local_rank(), shards=world.size // WIDTH)


def parallelize(model: nn.Module, mesh: Any, sequence: bool) -> None:
    """Projections cut by columns, then by rows. Norms are plain tensors, or with ``sequence`` DTensors that every rank
    holds whole, whose gradients each rank gets for its stretch of tokens only: partial sums."""
    between = Shard(1) if sequence else Replicate()
    outer: dict[str, Any] = {"lm_head": ColwiseParallel(input_layouts=between, output_layouts=Replicate())}
    if sequence:
        outer["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        outer["model.norm"] = SequenceParallel()
    for layer in layers_of(model):
        parallelize_module(layer, mesh, _with_adapters(layer, _layer_plan(sequence, between)))
    parallelize_module(next(module for module in model.modules() if isinstance(module, LanguageModel)), mesh, outer)


def _layer_plan(sequence: bool, between: Any) -> dict[str, Any]:
    from torch.distributed.tensor.parallel import PrepareModuleInput

    plan: dict[str, Any] = {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(output_layouts=between),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=between),
    }
    if sequence:
        for norm, block in (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")):
            plan[norm] = SequenceParallel()
            plan[block] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    return plan


def _with_adapters(layer: nn.Module, plan: dict[str, Any]) -> dict[str, Any]:
    """The plan where projections carry adapters: of the two factors the one on the cut side is cut, the other plain."""
    found: dict[str, Any] = {}
    for name, style in plan.items():
        if hasattr(layer.get_submodule(name), "lora_A"):
            cut = "lora_B" if isinstance(style, ColwiseParallel) else "lora_A"
            found |= {f"{name}.base_layer": style, f"{name}.{cut}.default": style}
        else:
            found[name] = style
    return found


def divides_heads(world: World) -> str:
    """Requires a number of ranks among which the model's heads can be shared."""
    return "" if world.size in (2, 4) else "needs 2 or 4 ranks, among which to share 4 heads"


ONE_EACH = Plan(micro_batches=1)

PAIRS = ranks_from(4, multiple=WIDTH)

TENSOR_PARALLEL = {
    "tensor parallel": Case(
        "columns and rows over all ranks, norms plain", tensor_parallel, plan=ONE_EACH, needs=divides_heads
    ),
    "tensor parallel, sequence": Case(
        "norms replicated, their gradients partial sums over ranks",
        partial(tensor_parallel, sequence=True),
        plan=SHORT,
        needs=divides_heads,
    ),
    "tensor parallel, LoRA": Case(
        "of each adapter's factors one is cut and one plain",
        tensor_parallel,
        ModelSpec(lora=True),
        SHORT,
        needs=divides_heads,
    ),
    "fsdp2 x tensor parallel": Case("a 2-D mesh, norms on one dimension of it", both, plan=ONE_EACH, needs=PAIRS),
    "fsdp2 x tensor parallel, sequence": Case(
        "a 2-D mesh, norms sharded along one dimension and replicated along the other",
        partial(both, sequence=True),
        plan=SHORT,
        needs=PAIRS,
    ),
    "fsdp2 x tensor parallel, uneven": Case(
        "sizes that the pairs do not divide",
        both,
        ModelSpec(hidden=6, heads=2, intermediate=10),
        SHORT,
        needs=PAIRS,
    ),
    "fsdp2 x tensor parallel, LoRA": Case(
        "PEFT adapters on a 2-D mesh", both, ModelSpec(lora=True), SHORT, needs=PAIRS
    ),
}
