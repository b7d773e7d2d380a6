"""One process with all the data. On several ranks each does the same by itself, without a collective in training."""

from functools import partial

import torch
from torch import nn

from ..case import BFLOAT16_BUFFERS, SHORT, Case, Spread
from ..data import Plan
from ..models import ModelSpec, layers_of
from ..world import World


def alone(model: nn.Module, world: World, compiled: bool = False, buffers: str = "device") -> Spread:
    """The model as it is, or compiled."""
    return Spread(compile_model(model, world) if compiled else model, surgeon={"buffers": buffers})


def compile_model(model: nn.Module, world: World) -> nn.Module:
    """``torch.compile`` of the model; on CPUs without code generation, which would need a C++ compiler."""
    return torch.compile(model, backend=_compiler(world))  # type: ignore[return-value]


def _compiler(world: World) -> str:
    return "aot_eager" if world.on_cpu else "inductor"


def checkpoint_layers(model: nn.Module) -> None:
    """Recomputes every layer in the backward pass."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    layers = layers_of(model)
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)


def compile_layers(model: nn.Module, world: World) -> None:
    """``torch.compile`` of every layer in place, as it goes with FSDP2, whose hooks lie around the layers."""
    for layer in layers_of(model):
        layer.compile(backend=_compiler(world))


def by_itself(world: World) -> str:
    """Requires that there is one process only; several have cases of their own for it."""
    return "" if world.size == 1 else "runs in one process"


SINGLE = {
    "one process": Case("no wrapper, 2 micro-batches per domain", alone),
    "one process, accumulation": Case(
        "5 uneven micro-batches per domain, domains missing in some steps",
        alone,
        plan=Plan(micro_batches=5, uneven=True, missing=True, steps=3),
    ),
    **{
        f"one process, {domains} domain{'s' * (domains > 1)}": Case(
            f"D = {domains}", alone, plan=Plan(domains=domains, micro_batches=1, steps=3)
        )
        for domains in (1, 2, 5, 8)
    },
    "one process, tied embeddings": Case("one tensor for embedding and head", alone, ModelSpec(tied=True), SHORT),
    "one process, experts": Case("fused experts, cut into units", alone, ModelSpec(experts=3), SHORT),
    "one process, LoRA": Case("PEFT adapters", alone, ModelSpec(lora=True), SHORT),
    "one process, compiled": Case("torch.compile", partial(alone, compiled=True), plan=SHORT, needs=by_itself),
    "one process, bfloat16 buffers": Case(
        "buffers='bfloat16'", partial(alone, buffers="bfloat16"), plan=SHORT, tolerances=BFLOAT16_BUFFERS
    ),
    "one process, CPU buffers": Case("buffers='cpu'", partial(alone, buffers="cpu"), plan=SHORT),
}
