"""Whether training with gradient surgery fits into your GPUs, from the model's shapes alone.

>>> plan = make_plan(model_shapes("8B"), Setup(gpus=8, domains=3), ("ddp", "fsdp2"))
>>> plan.ranks[1].surgery  # bytes that surgery adds on each GPU under FSDP2

Bytes are those of the rank that holds most. V gradients (vectors) are kept apart in a step: one per domain, or two (its
halves) for weightings that measure noise. Activations, and the layers that a back end gathers for a moment, are not
counted. What a configuration runs beside the policy is in ``Setup.companions``.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch

from .anatomy import Anatomy
from .companions import Companions
from .config import ModelConfig
from .inputs import kind_of
from .models import described_model, resolve_path, with_adapters
from .surgery import group_parameters
from .surgery._passes.scattered import make_buckets
from .surgery.strategies import Strategy, resolve_strategy
from .surgery.units import Units
from .surgery.weightings import build_weighting

Backend = Literal["one process", "ddp", "fsdp2"]
Buffers = Literal["device", "bfloat16", "cpu"]
BUFFERS: tuple[Buffers, ...] = ("device", "bfloat16", "cpu")
"""Where the gradients of the domains wait for the last one."""

GIB = 2**30
ITEM_SIZES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element by the name of its type."""

Shape = tuple[int, ...]

_COLUMNS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_KNOWN = {
    "0.5B": ("Qwen2.5-0.5B", "qwen2", (151936, 896, 4864, 24, 14), 2, True),
    "8B": ("Llama-3.1-8B", "llama", (128256, 4096, 14336, 32, 32), 8, False),
    "70B": ("Llama-3.1-70B", "llama", (128256, 8192, 28672, 80, 64), 8, False),
}
"""Well-known shapes, so that planning needs no network: label, type, sizes, key-value heads, tied embeddings."""


@dataclass(frozen=True)
class ModelShapes:
    """The parameters of a model by name, in model order, a tied parameter once."""

    label: str
    trained: Mapping[str, Shape]
    """Parameters that are trained: all of them, or the adapters of LoRA."""
    frozen: Mapping[str, Shape]
    anatomy: Anatomy

    @property
    def num_trained(self) -> int:
        """Number of trained weights."""
        return local_total(self.trained, 1)

    @property
    def num_frozen(self) -> int:
        """Number of frozen weights."""
        return local_total(self.frozen, 1)


def model_shapes(model: str | ModelConfig) -> ModelShapes:
    """The shapes of a model: ``0.5B``, ``8B`` or ``70B``, ``pocket``, a checkpoint folder, a ``config.json``, or a hub
    id; as ``model.path`` of a configuration with its LoRA adapters.

    Raises:
        ModelError: there is no configuration of a causal language model.
        MissingExtraError: adapters are asked for and PEFT is not installed.
    """
    chosen = model if isinstance(model, ModelConfig) else ModelConfig(path=model)
    built = _without_weights(chosen)
    shapes = {name: (tuple(p.shape), p.requires_grad) for name, p in built.named_parameters()}
    return ModelShapes(
        _label(chosen.path),
        {name: shape for name, (shape, trained) in shapes.items() if trained},
        {name: shape for name, (shape, trained) in shapes.items() if not trained},
        Anatomy.of(built),
    )


def group_sizes(model: str | ModelConfig, grouping: str) -> dict[str, tuple[int, int]]:
    """Number of tensors (or slices of one) and of parameters of every group of ``grouping``, in model order.

    Raises:
        ModelError, MissingExtraError: as ``model_shapes``.
        GroupingError: no such grouping.
    """
    built = _without_weights(model if isinstance(model, ModelConfig) else ModelConfig(path=model))
    sizes = {name: p.numel() for name, p in built.named_parameters()}
    found: dict[str, tuple[int, int]] = {}
    for name, groups in group_parameters(built, grouping).items():
        for group in groups:
            tensors, parameters = found.get(group, (0, 0))
            found[group] = (tensors + 1, parameters + sizes[name] // len(groups))
    return found


def _without_weights(chosen: ModelConfig) -> Any:
    """The model on the meta device, with its adapters."""
    from transformers import AutoConfig

    def read_config() -> Any:
        if chosen.path not in _KNOWN:
            return AutoConfig.from_pretrained(
                resolve_path(chosen), revision=chosen.revision, trust_remote_code=chosen.trust_remote_code
            )
        _, kind, sizes, heads, tied = _KNOWN[chosen.path]
        settings = dict(zip(_COLUMNS, sizes, strict=True))
        return AutoConfig.for_model(kind, **settings, num_key_value_heads=heads, tie_word_embeddings=tied)

    choices = (
        f"{', '.join(_KNOWN)}, 'pocket', a folder with a config.json, that file, a hub id, or a configuration in YAML"
    )
    return with_adapters(chosen, described_model(chosen.path, read_config, choices, chosen.trust_remote_code))


def _label(model: str) -> str:
    if model in _KNOWN:
        return _KNOWN[model][0]
    path = Path(model)
    return (path.parent.name or model) if path.name == "config.json" else path.name if kind_of(path) else model


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
    companions: Companions = field(default_factory=Companions)
    """Reference model, vLLM and reward models."""
    gpu_memory: int = 80 * GIB
    """Bytes of one GPU, of which vLLM takes its share."""

    @property
    def batches(self) -> int:
        """Micro-batches per step and rank."""
        return 4 * self.domains if self.micro_batches is None else self.micro_batches

    def num_shards(self, backend: Backend) -> int:
        """Ranks over which a parameter is sharded."""
        return (self.shards or self.gpus) if backend == "fsdp2" else 1


@dataclass(frozen=True)
class Surgery:
    """The sizes of the strategy's numbers: groups G, units U and vectors V."""

    strategy: str
    groups: int
    units: int
    vectors: int
    collects_each: bool
    """Whether every micro-batch is collected, and reduced, on its own: for weightings that compare halves."""

    def kept(self, batches: int) -> int:
        """Gradients alive at once: the vectors, and one to be added to its vector where each is collected."""
        return self.vectors + (self.collects_each and batches > self.vectors)


@dataclass(frozen=True)
class RankPlan:
    """Bytes of one rank under one back end."""

    backend: Backend
    buffers: Buffers
    sync_each_batch: bool
    frozen: int
    weights: int
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
    reference: int = 0
    """The reference model of a KL term, cut up like the policy."""
    reference_gathered: int = 0
    """All of it under FSDP2, which TRL wraps as one piece, while it scores: before there is any gradient."""
    reward_models: int = 0
    vllm: int = 0
    """What vLLM takes: all the time, or only before there is any gradient where it sleeps."""
    vllm_sleeps: bool = False
    training: int = field(init=False)
    """All on the device that training without surgery and vLLM needs."""
    device: int = field(init=False)
    """All on the device, at the fullest of three moments: generating, scoring, updating."""

    def __post_init__(self) -> None:
        kept = self.frozen + self.weights + self.moments + self.ddp_buckets + self.reference + self.reward_models
        awake = 0 if self.vllm_sleeps else self.vllm
        training = kept + self.gradient + self.unsharded_gradient
        moments = (kept + self.vllm, kept + self.reference_gathered + awake, training + self.surgery + awake)
        object.__setattr__(self, "training", training)
        object.__setattr__(self, "device", max(moments))


@dataclass(frozen=True)
class Plan:
    """The answer: the strategy's sizes and every back end's bytes."""

    model: ModelShapes
    setup: Setup
    surgery: Surgery
    ranks: tuple[RankPlan, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; memory in bytes per GPU."""
        return {
            "model": self.model.label,
            "trained": self.model.num_trained,
            "frozen": self.model.num_frozen,
            "gpus": self.setup.gpus,
            "domains": self.setup.domains,
            "micro_batches": self.setup.batches,
            **asdict(self.surgery),
            "companions": asdict(self.setup.companions),
            "backends": [asdict(rank) for rank in self.ranks],
        }


def make_plan(model: ModelShapes, setup: Setup, backends: tuple[Backend, ...]) -> Plan:
    """What ``setup`` needs for ``model`` under each of ``backends``.

    Raises:
        StrategyError, GroupingError: an unknown strategy, or a parameter that its grouping does not know.
    """
    strategy = resolve_strategy(setup.strategy)
    units = Units(model.trained, strategy.grouping, model.anatomy)
    halves = build_weighting(strategy.weighting).uses_halves
    vectors = num_vectors(setup.domains, halves, setup.batches)
    surgery = Surgery(strategy.name, len(units.own.groups), units.num_units, vectors, halves)
    return Plan(model, setup, surgery, tuple(plan_rank(model, setup, surgery, backend) for backend in backends))


def plan_rank(model: ModelShapes, setup: Setup, surgery: Surgery, backend: Backend) -> RankPlan:
    """The bytes of one rank, the one that holds most."""
    shards = setup.num_shards(backend)
    # PEFT makes adapters float32, and accelerate the trained weights that FSDP2 computes with in bfloat16
    upcast = bool(model.frozen) or (backend == "fsdp2" and setup.mixed_precision)
    item_size = ITEM_SIZES["float32" if upcast else setup.dtype]
    size = local_total(model.trained, shards) * item_size
    reductions = setup.batches if surgery.collects_each or setup.sync_each_batch else surgery.vectors
    accumulates = backend == "fsdp2" and reductions < setup.batches
    device, host = _surgery_bytes(model, setup, surgery.kept(setup.batches), backend, item_size)
    return RankPlan(
        backend,
        setup.buffers,
        setup.sync_each_batch,
        frozen=local_total(model.frozen, shards) * ITEM_SIZES[setup.dtype],
        weights=size,
        gradient=size,
        moments=2 * size,  # AdamW's
        ddp_buckets=size if backend == "ddp" else 0,
        unsharded_gradient=model.num_trained * (2 if setup.mixed_precision else item_size) if accumulates else 0,
        surgery=device,
        host=host,
        vllm_sleeps=setup.companions.vllm_sleeps,
        **_companion_bytes(model, setup, backend, shards),
    )


def _companion_bytes(model: ModelShapes, setup: Setup, backend: Backend, shards: int) -> dict[str, int]:
    others = setup.companions
    has_copy = others.kl and not model.frozen  # adapters are switched off instead
    gathered = has_copy and backend == "fsdp2" and shards > 1
    item_size = 2 if setup.mixed_precision else ITEM_SIZES[setup.dtype]
    return {
        "reference": local_total(model.trained, shards) * ITEM_SIZES[setup.dtype] if has_copy else 0,
        "reference_gathered": model.num_trained * item_size if gathered else 0,
        "reward_models": others.reward_bytes,
        "vllm": int(others.vllm_share * setup.gpu_memory),
    }


def _surgery_bytes(model: ModelShapes, setup: Setup, vectors: int, backend: Backend, item_size: int) -> tuple[int, int]:
    if vectors == 1:
        return 0, 0
    if backend == "ddp":
        parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in model.trained.values()]
        bucket = max(bucket.shard * setup.gpus for bucket in make_buckets(parameters, setup.gpus))
        return averaging_bytes(model.num_trained, vectors, setup.buffers, item_size, setup.gpus, bucket)
    shards = setup.num_shards(backend)
    longest = max(local_elements(shape, shards) for shape in model.trained.values())
    return surgery_bytes(local_total(model.trained, shards), vectors, setup.buffers, item_size, longest)


def num_vectors(domains: int, uses_halves: bool, micro_batches: int) -> int:
    """Number of gradients V kept apart in a step: one per domain, or two where the weighting splits each in halves.

    A half needs a micro-batch of its own, so there are no more vectors than micro-batches.
    """
    return max(domains, min(2 * domains, micro_batches)) if uses_halves else domains


def local_elements(shape: Shape, shards: int) -> int:
    """Elements of a parameter on the rank that holds most of it, sharded along dimension 0 over ``shards`` ranks.

    ``fully_shard`` gives each rank ``ceil(rows / shards)`` whole rows, and the last ranks what is left. So a LoRA
    factor of 16 rows over 64 ranks is one row on each of 16 ranks and nothing on the others.
    """
    return math.ceil(shape[0] / shards) * math.prod(shape[1:]) if shape else 1


def local_total(shapes: Mapping[str, Shape], shards: int) -> int:
    """Elements of all parameters on the fullest rank (the first: it never has less of a parameter than another)."""
    return sum(local_elements(shape, shards) for shape in shapes.values())


def surgery_bytes(elements: int, vectors: int, buffers: Buffers, item_size: int, longest: int) -> tuple[int, int]:
    """Bytes that surgery adds on a rank that holds ``elements`` of every gradient: (on the device, in host memory).

    V - 1 gradients wait while the last one is in ``.grad``; the weighted sum is written into memory that is there.
    From host memory they come back a stretch of parameters at a time, the next stretch while one is worked on; a
    stretch is no longer than the parameter of which this rank holds most, ``longest`` elements.
    """
    if buffers == "cpu":
        return 2 * (vectors - 1) * longest * item_size, (vectors - 1) * elements * item_size
    return (vectors - 1) * elements * waiting_size(buffers, item_size), 0


def averaging_bytes(
    elements: int, vectors: int, buffers: Buffers, item_size: int, ranks: int, bucket: int
) -> tuple[int, int]:
    """The same where whole local gradients are averaged over ``ranks`` at the end of the step, as under DDP.

    Gradients are packed into a bucket of ``bucket`` elements and sent, so that every vector in turn becomes a shard of
    1/N. Gradients on the device make room at least as fast as shards fill it, so the most is held at the beginning;
    those in host memory come back a bucket at a time, and the most is held at the end.
    """
    if buffers == "cpu":
        shards = (vectors - 1) * math.ceil(elements / ranks)
        return (shards + 2 * bucket) * item_size, (vectors - 1) * elements * item_size
    return (vectors - 1) * elements * waiting_size(buffers, item_size) + bucket * item_size, 0


def waiting_size(buffers: Buffers, item_size: int) -> int:
    """Bytes of one element of a gradient that waits."""
    return min(2, item_size) if buffers == "bfloat16" else item_size


def size(num_bytes: float) -> str:
    """``22.4 GiB``, in the unit that reads best."""
    for unit, factor in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:,.1f} {unit}"
    return f"{num_bytes:,.0f} B"


def verdict(plan: Plan, rank: RankPlan, limit: int) -> str:
    """One sentence: whether it fits into ``limit`` bytes, and if not what would."""
    if rank.device <= limit:
        host = f", with {size(rank.host)} of pinned host memory" if rank.host else ""
        left = f"{size(limit - rank.device)} are left for activations"
        return f"fits into {size(limit)}: it needs {size(rank.device)}{host}, and {left}."
    too_much = f"{size(rank.device)} do not fit into {size(limit)}."
    for other in _other_ways(plan, rank):
        if other.device <= limit:
            changes = [f"buffers: {other.buffers}"] if other.buffers != rank.buffers else []
            changes += ["sync_each_batch: true"] if other.sync_each_batch != rank.sync_each_batch else []
            changes += ["vllm_enable_sleep_mode: true"] if other.vllm_sleeps != rank.vllm_sleeps else []
            host = f" and {size(other.host)} of pinned host memory" if other.host else ""
            return f"{too_much} {' and '.join(changes)} would fit, with {size(other.device)}{host}."
    instead = "Shard over more GPUs" if rank.backend == "fsdp2" else "Use FSDP2 on several GPUs"
    if rank.vllm:
        instead = f"Lower vllm_gpu_memory_utilization or give vLLM its own GPUs (vllm_mode: server). {instead}"
    least = rank.training - rank.unsharded_gradient
    why = "No kind of buffers makes it fit."
    if least > limit:
        why = f"Training alone needs {size(least)}, so no kind of buffers helps."
    return f"{too_much} {why} {instead}, or train LoRA adapters."


def _other_ways(plan: Plan, rank: RankPlan) -> Iterator[RankPlan]:
    """What one could do about it, from what costs least: buffers, reducing every micro-batch (FSDP2), sending vLLM to
    sleep.
    """
    setup, others = plan.setup, plan.setup.companions
    syncs = dict.fromkeys((setup.sync_each_batch, setup.sync_each_batch or rank.backend == "fsdp2"))
    sleeps = dict.fromkeys((others.vllm_sleeps, others.vllm == "colocate"))
    for asleep, sync, buffers in product(sleeps, syncs, BUFFERS):
        changed = replace(setup, buffers=buffers, sync_each_batch=sync, companions=replace(others, vllm_sleeps=asleep))
        yield plan_rank(plan.model, changed, plan.surgery, rank.backend)
