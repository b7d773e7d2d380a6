"""One process with all the data. On several ranks each does the same by itself, without a collective in training."""

from functools import partial

import torch
from torch import nn

from ..case import BFLOAT16_BUFFERS, Case, Spread
from ..data import Plan
from ..models import ModelSpec
from ..world import World


def alone(model: nn.Module, world: World, compiled: bool = False, buffers: str = "device") -> Spread:
    """The model as it is, or compiled."""
    return Spread(compile_model(model, world) if compiled else model, surgeon={"buffers": buffers})


def compile_model(model: nn.Module, world: World) -> nn.Module:
    """``torch.compile`` of the model; on CPUs without code generation, which would need a C++ compiler."""
    return torch.compile(model, backend="aot_eager" if world.on_cpu else "inductor")  # type: ignore[return-value]


SINGLE = {
    "one process": Case("no wrapper, 2 micro-batches per domain", alone),
    "one process, accumulation": Case(
        "5 uneven micro-batches per domain, domains missing in some steps",
        alone,
        plan=Plan(micro_batches=5, uneven=True, missing=True, steps=4),
    ),
    **{
        f"one process, {domains} domain{'s' * (domains > 1)}": Case(
            f"D = {domains}", alone, plan=Plan(domains=domains, micro_batches=1, steps=4)
        )
        for domains in (1, 2, 5, 8)
    },
    "one process, tied embeddings": Case("one tensor for embedding and head", alone, ModelSpec(tied=True)),
    "one process, experts": Case("fused experts, cut into units", alone, ModelSpec(experts=3)),
    "one process, compiled": Case("torch.compile", partial(alone, compiled=True), plan=Plan(steps=4)),
    "one process, bfloat16 buffers": Case(
        "buffers='bfloat16'", partial(alone, buffers="bfloat16"), tolerances=BFLOAT16_BUFFERS
    ),
    "one process, CPU buffers": Case("buffers='cpu'", partial(alone, buffers="cpu")),
}
