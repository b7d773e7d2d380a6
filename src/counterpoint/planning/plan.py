"""What a training with surgery needs on every rank, before anyone rents a machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..surgery._passes.scattered import make_buckets
from ..surgery.strategies import Strategy, resolve_strategy
from ..surgery.units import Units
from ..surgery.weightings import build_weighting
from . import memory, traffic
from .memory import BUFFERS, ITEM_SIZES, Buffers
from .shapes import ModelShapes, Shape

Backend = Literal["one process", "ddp", "fsdp2"]

GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """How a model is to be trained."""

    gpus: int = 1
    domains: int = 2
    strategy: str | Mapping[str, Any] | Strategy = "mgs"
    buffers: Buffers = "device"
    micro_batches: int | None = None
    """Micro-batches of one rank in one optimizer step; None means four per domain."""
    sync_each_batch: bool = False
    """Whether FSDP2 reduces after every micro-batch instead of once per domain."""
    dtype: str = "float32"
    """Type in which the model is loaded."""
    mixed_precision: bool = True
    """Whether accelerate computes, and FSDP2 reduces, in bfloat16."""
    shards: int | None = None
    """FSDP2 with replicas (HSDP): ranks over which one replica is sharded; None means all."""

    @property
    def batches(self) -> int:
        """Micro-batches per step and rank."""
        return 4 * self.domains if self.micro_batches is None else self.micro_batches

    @property
    def num_shards(self) -> int:
        """Ranks over which FSDP2 shards a parameter."""
        return self.gpus if self.shards is None else self.shards


@dataclass(frozen=True)
class Surgery:
    """The sizes of the strategy's numbers: groups G, units U and vectors V."""

    strategy: str
    groups: int
    units: int
    vectors: int
    collects_each: bool = False
    """Whether every micro-batch is collected, and reduced, on its own: for weightings that compare halves."""

    def kept(self, batches: int) -> int:
        """Gradients alive at once: the vectors, and one to be added to its vector where each is collected."""
        return self.vectors + (self.collects_each and batches > self.vectors)

    def reductions(self, setup: Setup) -> int:
        """Times that FSDP2 reduces in one step."""
        each = self.collects_each or setup.sync_each_batch
        return setup.batches if each else min(self.vectors, setup.batches)


@dataclass(frozen=True)
class RankPlan:
    """Bytes of one rank under one back end; ``sent`` are bytes that it sends per step, by what they are for."""

    backend: Backend
    buffers: Buffers
    sync_each_batch: bool
    weights: int
    frozen: int
    gradient: int
    moments: int
    ddp_buckets: int
    """DDP's flat copy of the gradient, which it packs to reduce."""
    unsharded_gradient: int
    """What FSDP2 accumulates between reductions: a whole gradient on every rank."""
    surgery: int
    """What surgery adds on the device."""
    host: int
    """What surgery adds in pinned host memory."""
    sent: Mapping[str, float]

    @property
    def training(self) -> int:
        """Bytes on the device that training without surgery needs, activations left out."""
        return self.weights + self.frozen + self.gradient + self.moments + self.ddp_buckets + self.unsharded_gradient

    @property
    def device(self) -> int:
        """All bytes on the device, activations left out."""
        return self.training + self.surgery


@dataclass(frozen=True)
class Plan:
    """The answer: the strategy's sizes and every back end's bytes."""

    model: ModelShapes
    setup: Setup
    surgery: Surgery
    ranks: tuple[RankPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; memory in bytes per GPU, ``sent`` in bytes per GPU and step."""
        return {
            "model": self.model.label,
            "trained": self.model.num_trained,
            "frozen": self.model.num_frozen,
            "gpus": self.setup.gpus,
            "domains": self.setup.domains,
            "micro_batches": self.setup.batches,
            **vars(self.surgery),
            "backends": [{**vars(rank), "training": rank.training, "device": rank.device} for rank in self.ranks],
        }


def make_plan(model: ModelShapes, setup: Setup, backends: tuple[Backend, ...]) -> Plan:
    """What ``setup`` needs for ``model`` under each of ``backends``.

    Raises:
        StrategyError, GroupingError: an unknown strategy, or a parameter that its grouping does not know.
    """
    surgery = describe_surgery(model, setup)
    return Plan(model, setup, surgery, tuple(plan_rank(model, setup, surgery, backend) for backend in backends))


def describe_surgery(model: ModelShapes, setup: Setup) -> Surgery:
    """The sizes of the strategy's numbers for the trained parameters of ``model``."""
    strategy = resolve_strategy(setup.strategy)
    units = Units(model.trained, strategy.grouping, model.anatomy)
    uses_halves = build_weighting(strategy.weighting).uses_halves
    vectors = memory.num_vectors(setup.domains, uses_halves, setup.batches)
    return Surgery(strategy.name, len(units.own.groups), units.num_units, vectors, uses_halves)


def plan_rank(model: ModelShapes, setup: Setup, surgery: Surgery, backend: Backend) -> RankPlan:
    """The bytes of one rank, the one that holds most."""
    shards = setup.num_shards if backend == "fsdp2" else 1
    item_size = trained_size(model, setup, backend)
    compute_size = 2 if setup.mixed_precision else item_size
    elements = memory.local_total(model.trained, shards)
    device, host = _surgery_bytes(model, setup, surgery.kept(setup.batches), backend, item_size)
    accumulates = backend == "fsdp2" and surgery.reductions(setup) < setup.batches
    training = memory.training_bytes(elements, item_size)
    return RankPlan(
        backend,
        setup.buffers,
        setup.sync_each_batch,
        training["weights"],
        memory.local_total(model.frozen, shards) * ITEM_SIZES[setup.dtype],
        training["gradient"],
        training["moments"],
        training["gradient"] if backend == "ddp" else 0,
        model.num_trained * compute_size if accumulates else 0,
        device,
        host,
        _sent(model, setup, surgery, backend, compute_size if backend == "fsdp2" else item_size),
    )


def trained_size(model: ModelShapes, setup: Setup, backend: Backend) -> int:
    """Bytes of one trained element, of its gradient and of each of AdamW's moments.

    PEFT makes adapters float32, and accelerate the trained weights that FSDP2 computes with in bfloat16.
    """
    upcast = bool(model.frozen) or (backend == "fsdp2" and setup.mixed_precision)
    return ITEM_SIZES["float32" if upcast else setup.dtype]


def first_fit(model: ModelShapes, setup: Setup, backend: Backend, limit: int) -> RankPlan | None:
    """The first way that fits into ``limit`` bytes on the device: as asked, with other buffers, then with
    ``sync_each_batch``; None where no way does."""
    surgery = describe_surgery(model, setup)
    for sync in dict.fromkeys((setup.sync_each_batch, True if backend == "fsdp2" else setup.sync_each_batch)):
        for buffers in dict.fromkeys((setup.buffers, *BUFFERS)):
            rank = plan_rank(model, replace(setup, buffers=buffers, sync_each_batch=sync), surgery, backend)
            if rank.device <= limit:
                return rank
    return None


def _surgery_bytes(model: ModelShapes, setup: Setup, vectors: int, backend: Backend, item_size: int) -> tuple[int, int]:
    if vectors == 1:
        return 0, 0
    if backend == "ddp":
        bucket = _longest_bucket(model.trained, setup.gpus)
        return memory.averaging_bytes(model.num_trained, vectors, setup.buffers, item_size, setup.gpus, bucket)
    shards = setup.num_shards if backend == "fsdp2" else 1
    longest = max(memory.local_elements(shape, shards) for shape in model.trained.values())
    elements = memory.local_total(model.trained, shards)
    return memory.surgery_bytes(elements, vectors, setup.buffers, item_size, longest)


def _longest_bucket(shapes: Mapping[str, Shape], ranks: int) -> int:
    """Elements of the Surgeon's longest bucket, padding included."""
    import torch

    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes.values()]
    return max(bucket.shard * ranks for bucket in make_buckets(parameters, ranks))


def _sent(model: ModelShapes, setup: Setup, surgery: Surgery, backend: Backend, item_size: int) -> dict[str, float]:
    if backend == "one process":
        return {}
    size, n, vectors = model.num_trained * item_size, setup.gpus, surgery.vectors
    if backend == "ddp":
        reductions = {
            "no surgery": traffic.all_reduce(size, n),
            "every micro-batch": traffic.ddp_every_batch(size, n, setup.batches),
            "surgery": traffic.ddp_surgery(size, n, vectors),
        }
    else:
        shards, replicas = setup.num_shards, n // setup.num_shards
        reductions = {
            "no surgery": traffic.sharded(size, shards, replicas, 1),
            "every micro-batch": traffic.sharded(size, shards, replicas, setup.batches),
            "surgery": traffic.sharded(size, shards, replicas, surgery.reductions(setup)),
        }
    return {**reductions, "inner products": traffic.all_reduce(memory.message_bytes(surgery.units, vectors), n)}
