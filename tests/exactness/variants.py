"""What the suite proves besides the command's own cases; a module of its own, so that ranks can import it."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor.parallel import ColwiseParallel
from torch.func import functional_call

from counterpoint.errors import RankMismatchError
from counterpoint.surgery import Surgeon
from counterpoint.verify import _cases as suite
from counterpoint.verify import _suite, open_world, run_suite
from counterpoint.verify._cases import OWN_WAYS, TWO, UNEVEN, UNEVEN_MODEL, Case, Spread, averaged, ddp, fsdp
from counterpoint.verify._model import ModelSpec, Plan, build_model, language_model

FOUR = (4, 2)
TIED, LORA, EXPERTS = ModelSpec(tied=True), ModelSpec(lora=True), ModelSpec(experts=3)
ONCE = Plan(micro_batches=4)
BFLOAT16_BUFFERS = {"gradients": 4e-3, "Grams": 8e-3, "weights": 4e-2, "parameters": 0.2}
"""Every element of a waiting gradient is rounded to 8 bits."""
BFLOAT16_COMPUTE = {"gradients": 1e-6, "Grams": 5e-6, "weights": 4e-2, "parameters": 0.2}
"""Where both sides round alike in the first step, and as soon as a parameter differs in its last bit no longer."""


def alone(model, world, **surgeon):
    return Spread(model, surgeon=surgeon)


def checkpointed(model):
    layers = language_model(model).model.layers
    for i, layer in enumerate(layers):
        layers[i] = checkpoint_wrapper(layer)
    return model


def layers_compiled(model):
    """As it goes with FSDP2, whose hooks lie around the layers. Without code generation, which needs a C++ compiler."""
    for layer in language_model(model).model.layers:
        layer.compile(backend="aot_eager")
    return model


def compiled(model):
    return torch.compile(model, backend="aot_eager")


def after(change, spread, **options):
    return lambda model, world: spread(change(model), world, **options)


class InHalf(nn.Module):
    """A model that computes in bfloat16, as under a mixed precision policy."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, tokens_BT):
        half = {name: parameter.bfloat16() for name, parameter in self.module.named_parameters()}
        return functional_call(self.module, half, (tokens_BT,))


def cut_adapters(layer, plan):
    """Of an adapter's factors the one on the cut side is cut, the other plain."""
    found = {}
    for name, style in plan.items():
        if hasattr(layer.get_submodule(name), "lora_A"):
            cut = "lora_B" if isinstance(style, ColwiseParallel) else "lora_A"
            found |= {f"{name}.base_layer": style, f"{name}.{cut}.default": style}
        else:
            found[name] = style
    return found


tensor = suite.tensor_parallel
plain_norms = partial(tensor, sequence=False)
offload = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
in_half = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}


def case(spread, model=ModelSpec(), plan=Plan(), ranks=TWO, tolerances=(), **more):  # noqa: B008
    """Two steps: every other one lacks a domain in uneven plans. The command's own cases go through three."""
    return Case("", spread, model, replace(plan, steps=2), ranks, tolerances=dict(tolerances), **more)


VARIANTS = {
    "alone": case(alone, ranks=(1, 1)),
    "alone, accumulation": case(alone, plan=Plan(micro_batches=5, uneven=True), ranks=(1, 1)),
    **{f"alone, D={d}": case(alone, plan=Plan(d, micro_batches=1), ranks=(1, 1)) for d in (1, 2, 5, 8)},
    "alone, tied": case(alone, TIED, ranks=(1, 1)),
    "alone, experts": case(alone, EXPERTS, ranks=(1, 1)),
    "alone, LoRA": case(alone, LORA, ranks=(1, 1)),
    "alone, compiled": case(after(compiled, alone), ranks=(1, 1)),
    "alone, bfloat16": case(partial(alone, buffers="bfloat16"), ranks=(1, 1), tolerances=BFLOAT16_BUFFERS),
    "alone, cpu": case(partial(alone, buffers="cpu"), ranks=(1, 1)),
    "ddp, even": case(ddp),
    "ddp, one reduction per domain": case(partial(ddp, sync="last"), plan=ONCE),
    "ddp, bucket views": case(partial(ddp, gradient_as_bucket_view=True)),
    "ddp, LoRA": case(ddp, LORA),
    "ddp, tied": case(ddp, TIED),
    "ddp, experts": case(ddp, EXPERTS),
    "ddp, checkpointed": case(after(checkpointed, ddp)),
    "ddp, compiled": case(after(compiled, ddp)),
    **{f"ddp, D={d}": case(ddp, plan=Plan(d, micro_batches=1)) for d in (1, 8)},
    "averaged, even": case(averaged),
    "averaged, bucket views": case(partial(averaged, gradient_as_bucket_view=True), plan=OWN_WAYS),
    "averaged, LoRA": case(averaged, LORA, OWN_WAYS),
    "averaged, bfloat16": case(partial(averaged, buffers="bfloat16"), plan=OWN_WAYS, tolerances=BFLOAT16_BUFFERS),
    "fsdp2, even": case(fsdp),
    "fsdp2, uneven rows": case(fsdp, plan=replace(UNEVEN, micro_batches=3)),
    "fsdp2, experts": case(fsdp, ModelSpec(experts=4)),
    "fsdp2, one reduction per domain": case(partial(fsdp, sync="last"), plan=ONCE),
    "fsdp2, no reshard": case(partial(fsdp, reshard_after_forward=False)),
    "fsdp2, mixed precision": case(
        partial(fsdp, **in_half), plan=Plan(micro_batches=1), tolerances=BFLOAT16_COMPUTE, reference=InHalf
    ),
    "fsdp2, CPU offload": case(partial(fsdp, **offload)),
    "fsdp2, checkpointed": case(after(checkpointed, fsdp)),
    "fsdp2, compiled": case(after(layers_compiled, fsdp)),
    "fsdp2, tied": case(fsdp, TIED),
    "fsdp2, D=8": case(fsdp, plan=Plan(8, micro_batches=1)),
    "fsdp2, bfloat16": case(partial(fsdp, buffers="bfloat16"), tolerances=BFLOAT16_BUFFERS),
    "fsdp2, cpu": case(partial(fsdp, buffers="cpu")),
    "hsdp, reduced each time": case(partial(fsdp, replicas=2), UNEVEN_MODEL, Plan(micro_batches=1), FOUR),
    "hsdp, offload, checkpointed, uneven": case(
        after(checkpointed, fsdp, replicas=2, **offload), plan=replace(UNEVEN, micro_batches=3), ranks=FOUR
    ),
    "hsdp, LoRA": case(partial(fsdp, replicas=2), LORA, ranks=FOUR),
    "tensor parallel, plain norms": case(plain_norms),
    "tensor parallel, LoRA": case(partial(plain_norms, adapt=cut_adapters), LORA),
    "tensor parallel, odd sizes": case(plain_norms, ModelSpec(hidden=6, heads=2, intermediate=10), ranks=FOUR),
}


def copies_counted(surgeon: Surgeon) -> None:
    """Every rank contributes the inner products of what all ranks hold, beside those of its shards."""
    surgeon._passes.ranks.owns_P = [True] * len(surgeon._passes.ranks.owns_P)


PLANTED = {
    "orders differ under fsdp2": Case("", fsdp, plan=suite.OtherData(), ranks=TWO, seen_by="gradients"),
    "copies counted": Case("", partial(suite.tampered, spread=tensor, how=copies_counted), ranks=TWO, seen_by="Grams"),
}


class OtherOrder(Plan):
    """Ranks that go through names and data in orders of their own."""

    def order(self, step, mine):
        names, turn = self.names(step), mine[0] % self.domains
        return names[turn:] + names[:turn]


def is_refused(spread):
    """Whether the Surgeon refuses ranks that tell the different domains that they collect."""
    with open_world("cpu") as world:
        spread = spread(build_model(ModelSpec(), world.dtype), world)
        surgeon = Surgeon(spread.model, "mgs")
        _suite._collect(spread, OtherOrder(shards=world.size), surgeon, 0, world.device)
        try:
            surgeon.combine()
        except RankMismatchError:
            return True
        return False


ALL = suite.CASES | suite.PLANTED | VARIANTS | PLANTED


def run_on_ranks(names_by_dtype):
    """The outcomes of the named cases by dtype and name, as this rank reports them."""
    outcomes = {}
    for dtype, names in names_by_dtype.items():
        with open_world("cpu", dtype) as world:
            report = run_suite(world, {name: ALL[name] for name in names})
        outcomes |= {(dtype, outcome.name): outcome for outcome in report}
    return outcomes
