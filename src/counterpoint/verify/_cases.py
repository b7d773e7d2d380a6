"""What must be exact, and planted bugs that must be seen: a model, a plan, and a way to spread training over ranks."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from ..surgery import Context, Surgeon, Weighting
from ..surgery._passes.ranks import check_words
from ..surgery.weightings.pcgrad import project
from ._model import ModelSpec, Plan, Rows, language_model
from ._world import World

Tolerances = Mapping[str, float]

EXACT: dict[torch.dtype, Tolerances] = {
    torch.float32: {"gradients": 1e-6, "Grams": 5e-6, "weights": 1e-5, "parameters": 1e-4, "copies": 0},
    torch.float64: {"gradients": 1e-12, "Grams": 5e-12, "weights": 1e-11, "parameters": 1e-10, "copies": 0},
}
"""The largest relative errors that count as exact, by the parameters' dtype. Gradients and Grams are compared in the
first step, where parameters are equal. A Gram has the rounding errors of two gradients, in a group that may be small.
Weights and parameters are compared over all steps, through which AdamW carries rounding errors on. ``copies`` counts
parameters and records of which two ranks hold different bits."""

FACTOR = 100
"""How many times its tolerance a planted bug's error must exceed to count as seen."""


@dataclass(frozen=True)
class Spread:
    """A model spread over the ranks, and how its backward passes are run."""

    model: nn.Module
    mine: Sequence[int] = (0,)
    """Which parts of the rows this rank has ..."""
    shards: int = 1
    """... of how many different ones, over which gradients are averaged."""
    sync: Callable[[bool], AbstractContextManager[Any]] = lambda last: nullcontext()
    """The context of a backward pass, told whether it is the domain's last of this step."""
    collect_each: bool = True
    """Whether every micro-batch is collected, or only a domain's last, with the sum of all in ``.grad``."""
    surgeon: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the Surgeon."""
    tamper: Callable[[Surgeon], None] = lambda surgeon: None


@dataclass(frozen=True)
class Case:
    """One thing that must be exact, or a planted bug."""

    what: str
    """One line for people."""
    spread: Callable[[nn.Module, World], Spread]
    model: ModelSpec = field(default_factory=ModelSpec)
    plan: Plan = field(default_factory=Plan)
    ranks: tuple[int, int] = (1, 1)
    """The fewest ranks it runs on, and a number that must divide them."""
    seen_by: str = ""
    """For a planted bug the error that must be large."""
    tolerances: Tolerances = field(default_factory=dict)
    """Other ones than ``EXACT``."""
    reference: Callable[[nn.Module], nn.Module] = lambda model: model
    """What becomes of the model that one process trains in float64 on all rows."""

    def allowed(self, world: World) -> Tolerances:
        """The tolerances in this world."""
        return {**EXACT[world.dtype], **self.tolerances}

    def missing(self, world: World) -> str:
        """``needs 4 ranks or more``, where they are not there."""
        if self.model.lora and find_spec("peft") is None:
            return "needs PEFT (pip install 'counterpoint[peft]')"
        least, multiple = self.ranks
        if world.size >= least and world.size % multiple == 0:
            return ""
        return f"needs {least} ranks or more" + (f", a multiple of {multiple}" if multiple > 1 else "")


def ddp(model: nn.Module, world: World, *, sync: str = "each", **options: Any) -> Spread:
    """DDP that reduces in ``each`` backward, or in the ``last`` of each domain."""
    wrapped = _ddp(model, world, **options)
    waits = lambda last: nullcontext() if last or sync == "each" else wrapped.no_sync()  # noqa: E731
    return Spread(wrapped, (world.rank,), world.size, waits, collect_each=sync == "each")


def averaged(model: nn.Module, world: World, *, buffers: str = "device", **options: Any) -> Spread:
    """DDP that never reduces; the Surgeon averages."""
    wrapped = _ddp(model, world, **options)
    surgeon = {"average_over": dist.group.WORLD, "buffers": buffers}
    return Spread(wrapped, (world.rank,), world.size, lambda last: wrapped.no_sync(), surgeon=surgeon)


def _ddp(model: nn.Module, world: World, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, device_ids=None if world.device.type == "cpu" else [world.device], **options)


def fsdp(
    model: nn.Module, world: World, *, sync: str = "each", replicas: int = 1, buffers: str = "device", **options: Any
) -> Spread:
    """Every layer and the root fully sharded; with ``replicas`` as many copies of the model (HSDP)."""
    inside = world.size // replicas
    mesh = world.mesh(replicate=replicas, shard=inside) if replicas > 1 else world.mesh(shard=inside)
    shard_layers(model, mesh, **options)

    def waits(last: bool) -> AbstractContextManager[None]:
        model.set_requires_gradient_sync(last or sync == "each")  # type: ignore[operator]
        return nullcontext()

    return Spread(model, (world.rank,), world.size, waits, collect_each=sync == "each", surgeon={"buffers": buffers})


def shard_layers(model: nn.Module, mesh: Any, **options: Any) -> None:
    for layer in language_model(model).model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)


def tensor_parallel(model: nn.Module, world: World, **options: Any) -> Spread:
    """Pairs of ranks share every layer and see the same rows; with more than one pair FSDP2 shards over the pairs."""
    pairs = world.size // 2
    mesh = world.mesh(shard=pairs, tensor=2)
    parallelize(model, mesh["tensor"], **options)
    if pairs > 1:
        shard_layers(model, mesh["shard"])
    return Spread(model, (mesh["shard"].get_local_rank(),), pairs)


def parallelize(
    model: nn.Module,
    mesh: Any,
    sequence: bool = True,
    adapt: Callable[[nn.Module, dict[str, Any]], dict[str, Any]] = lambda layer, plan: plan,
) -> None:
    """Projections cut by columns, then by rows. Norms are plain tensors, or with ``sequence`` DTensors that every rank
    holds whole, whose gradients each rank gets for its stretch of tokens only: partial sums."""
    between = Shard(1) if sequence else Replicate()
    outer: dict[str, Any] = {"lm_head": ColwiseParallel(input_layouts=between, output_layouts=Replicate())}
    plan: dict[str, Any] = {
        **{name: ColwiseParallel() for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
        **{name: ColwiseParallel() for name in ("mlp.gate_proj", "mlp.up_proj")},
        **{name: RowwiseParallel(output_layouts=between) for name in ("self_attn.o_proj", "mlp.down_proj")},
    }
    if sequence:
        outer["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        outer["model.norm"] = SequenceParallel()
        gather = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        plan |= {"input_layernorm": SequenceParallel(), "post_attention_layernorm": SequenceParallel()}
        plan |= {"self_attn": gather, "mlp": gather}
    inner = language_model(model)
    for layer in inner.model.layers:
        parallelize_module(layer, mesh, adapt(layer, plan))
    parallelize_module(inner, mesh, outer)


UNEVEN = Plan(uneven=True)
OWN_WAYS = Plan(uneven=True, own_ways=True)
UNEVEN_MODEL = ModelSpec(hidden=5, heads=1, intermediate=7, experts=3)
"""Nothing divides by the number of ranks, and the gate of one row leaves all ranks but one without a part."""
TWO = (2, 1)

CASES: dict[str, Case] = {
    "ddp": Case("a reduction per backward; domains missing", ddp, plan=UNEVEN, ranks=TWO),
    "averaged": Case("average_over; each rank its own domains", averaged, plan=OWN_WAYS, ranks=TWO),
    "fsdp2": Case("shards of unequal size; domains missing", fsdp, UNEVEN_MODEL, UNEVEN, TWO),
    "hsdp": Case("2 sharded copies", partial(fsdp, replicas=2, sync="last"), UNEVEN_MODEL, ranks=(4, 2)),
    "lora": Case("PEFT adapters under fully_shard", fsdp, ModelSpec(lora=True)),
    "buffers": Case("waiting in (pinned) host memory", partial(averaged, buffers="cpu"), ModelSpec(), OWN_WAYS),
    "experts": Case("fused experts, cut by average_over", averaged, ModelSpec(experts=3), OWN_WAYS),
    "tensor parallel": Case("pairs share layers, FSDP2 over pairs", tensor_parallel, ranks=(2, 2)),
}
"""Each runs where there are ranks enough."""


@dataclass(frozen=True)
class OtherData(Plan):
    """Ranks that agree on the names and go through the data in orders of their own."""

    def micro(self, step: int, domain: str, mine: Sequence[int], device: torch.device | str = "cpu") -> list[Rows]:
        names = self.names(step)
        return super().micro(step, names[(names.index(domain) + mine[0]) % len(names)], mine, device)


def last_batch_only(model: nn.Module, world: World) -> Spread:
    """DDP as accumulation usually runs it: reduced in the last micro-batch of a step, local gradients before it."""
    spread, backwards = ddp(model, world), count(1)
    step = Plan().domains * Plan().micro_batches
    return replace(spread, sync=lambda _: nullcontext() if next(backwards) % step == 0 else spread.model.no_sync())  # type: ignore[operator]


def grams_of_shards(surgeon: Surgeon) -> None:
    """Every rank takes its shard's inner products for the whole; only the check words are summed."""
    ranks = surgeon._passes.ranks
    assert ranks is not None
    summed, words = ranks.sum, len(check_words(()))
    ranks.sum = lambda values: torch.cat([values[:-words].to(values), summed(values.clone())[-words:].to(values)])  # type: ignore[method-assign]


class Unseeded(Weighting):
    """PCGrad in orders that every rank draws for itself."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(dist.get_rank())

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        draws_GDD = torch.rand(gram_GDD.shape, generator=self._generator)
        draws_GDD.diagonal(dim1=-2, dim2=-1).fill_(2.0)  # oneself comes last, and is cut off
        order_GDD = draws_GDD.argsort(dim=-1)[..., :-1]
        return project(gram_GDD, order_GDD, torch.ones_like(gram_GDD, dtype=torch.bool)).sum(1)


def tampered(model: nn.Module, world: World, spread: Callable[..., Spread], how: Callable[[Surgeon], None]) -> Spread:
    return replace(spread(model, world), tamper=how)


def unseeded(surgeon: Surgeon) -> None:
    surgeon._weighting = Unseeded()


PLANTED: dict[str, Case] = {
    "orders differ": Case("ranks reduce different domains", ddp, plan=OtherData(), ranks=TWO, seen_by="gradients"),
    "last batch only": Case("one reduction per step", last_batch_only, ranks=TWO, seen_by="gradients"),
    "Grams of shards": Case(
        "no sum over ranks", partial(tampered, spread=fsdp, how=grams_of_shards), ranks=TWO, seen_by="Grams"
    ),
    "unseeded order": Case(
        "PCGrad's order drawn per rank", partial(tampered, spread=ddp, how=unseeded), ranks=TWO, seen_by="copies"
    ),
}
"""Mistakes that training on several ranks invites, made on purpose."""
