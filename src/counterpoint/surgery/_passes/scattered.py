"""Both passes where every rank collects gradients of its own, to be averaged over a group of ranks.

The gradients of D domains are reduce-scattered, so that every rank holds 1/N of each domain's average; inner products
and weighted sums are formed on these shards, and one gradient is gathered. That moves the bytes of (D + 1) / 2
all-reduces, where an all-reduce per domain would take D. Ranks may have collected the domains in any order, and a
domain may be missing on some of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import UnsupportedError
from .. import _kernels
from .ranks import Ranks, sum_over_ranks
from .shards import first_units, is_dtensor, unit_spans
from .stores import DeviceStore, Gradients, Held, Vector

BUCKET_ELEMENTS = 1 << 23
"""Elements of a bucket, unless one parameter has more: the scratch memory of the reduction is two buckets."""

CPU_BUCKET_ELEMENTS = 1 << 21
"""The same on a CPU, where gloo moves shorter messages faster."""

FORGOTTEN_AFTER = 8
"""Steps without a domain after which it is expected no more: until then zeros are averaged for it."""

Kind = tuple[torch.dtype, torch.device]
Scratch = dict[Kind, tuple[Tensor, Tensor]]
"""Memory for what is sent of a bucket and for what is received: new memory for each would cost as much as moving it."""


@dataclass(frozen=True)
class Bucket:
    """Parameters of one dtype and device that are reduced together, laid end to end and padded to whole shards."""

    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    shard: int
    """Elements of one rank's part."""
    kind: Kind


class ScatteredGradients:
    """Inner products and weighted sums of gradients averaged over ``group``, on this rank's shards of them."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], counts: Sequence[int], group: Any, ranks: Ranks, store: DeviceStore
    ) -> None:
        if any(is_dtensor(parameter) for parameter in parameters):
            raise UnsupportedError(
                "average_over is for whole gradients, and these parameters are DTensors, whose gradients FSDP2 or "
                "tensor parallelism reduce in backward. Leave average_over out."
            )
        self._parameters = parameters
        self._group = group
        self.ranks = ranks
        self._store = store
        self._world = dist.get_world_size(group)
        self._num_units = sum(counts)
        self._buckets = make_buckets(parameters, self._world)
        units, rank = first_units(counts), dist.get_rank(group)
        self._spans: list[_kernels.Span] = []
        for b, bucket in enumerate(self._buckets):
            pieces = [(size, counts[i], units[i]) for size, i in zip(bucket.sizes, bucket.indices, strict=True)]
            self._spans += unit_spans(pieces, b, rank * bucket.shard, (rank + 1) * bucket.shard)
        self.expected: dict[Vector, int] = {}
        """Vectors that any rank has collected recently, sorted by name, with the number of steps since. Identical on
        every rank."""
        self._present_P = [False] * len(parameters)
        self._shards: dict[Vector, Gradients] = {}

    def gram(
        self, held: Held, collected: Mapping[Vector, int], sequence: Sequence[str], step: int
    ) -> tuple[dict[Vector, int], Tensor]:
        """The vectors that any rank collected, in the order of names, with their micro-batches on all ranks, and the
        inner products [U, V, V] of their averages, float64 on the CPU.

        Expected vectors are averaged at once, zeros where nobody has one; the all-reduce of the inner products tells
        what there was. Only where a rank has a vector that nobody expected it takes a second one.
        """
        self._shards = {}
        here_P = [any(gradients[i] is not None for gradients in held.values()) for i in range(len(self._parameters))]
        if not self.expected:
            self._learn(collected)
        counts, news, gram_UVV = self._measure(held, collected, here_P)
        if news:
            self._learn(collected)
            counts, _, gram_UVV = self._measure(held, collected, here_P)
        there_V = [v for v, count in enumerate(counts) if count]
        found = {vector: count for vector, count in zip(self.expected, counts, strict=True) if count}
        self._shards = {vector: self._shards[vector] for vector in found}
        ages = {vector: 0 if vector in found else age + 1 for vector, age in self.expected.items()}
        self.expected = {vector: age for vector, age in ages.items() if age < FORGOTTEN_AFTER}
        return found, gram_UVV[:, there_V][:, :, there_V]

    def write(self, held: Held, vectors: Sequence[Vector], weights_UV: Tensor) -> None:
        """Sets ``.grad`` to the weighted sums, whole on every rank; none where no rank has a gradient."""
        shards_VB = [self._shards[vector] for vector in vectors]
        targets_B = shards_VB[0]
        _kernels.weighted_sums_(shards_VB, targets_B, self._spans, weights_UV)
        self._shards = {}
        del shards_VB
        for b, bucket in enumerate(self._buckets):
            shard, targets_B[b] = targets_B[b], None
            assert shard is not None
            self._gather(shard, bucket)

    def _learn(self, collected: Mapping[Vector, int]) -> None:
        everybodys = {vector for part in self.ranks.gather(sorted(collected)) for vector in part}
        self.expected = {vector: self.expected.get(vector, 0) for vector in sorted({*self.expected, *everybodys})}

    def _measure(
        self, held: Held, collected: Mapping[Vector, int], here_P: list[bool]
    ) -> tuple[list[int], bool, Tensor]:
        """Micro-batches of the expected vectors, whether a rank has another one, and inner products, over all ranks."""
        news = any(vector not in self.expected for vector in collected)
        mine = [int(news), *map(int, here_P), *(collected.get(vector, 0) for vector in self.expected)]
        more = torch.tensor(mine, dtype=torch.float64)
        gram_UVV, sums = sum_over_ranks(self._contribution(held), more, self.ranks)
        first, *rest = map(int, sums.tolist())
        self._present_P = [bool(flag) for flag in rest[: len(here_P)]]
        return rest[len(here_P) :], bool(first), gram_UVV

    def _contribution(self, held: Held) -> Tensor:
        """Averages the expected vectors, and gives the inner products [U, V, V] of this rank's shards of them."""
        if not self.expected:
            return torch.zeros(self._num_units, 0, 0, dtype=torch.float64)
        scratch = self._make_scratch()
        for vector in self.expected:
            if vector not in self._shards:
                self._shards[vector] = [self._reduce(held.get(vector), bucket, scratch) for bucket in self._buckets]
        del scratch
        return _kernels.unit_grams([self._shards[vector] for vector in self.expected], self._spans, self._num_units)

    def _make_scratch(self) -> Scratch:
        sizes: dict[Kind, int] = {}
        for bucket in self._buckets:
            sizes[bucket.kind] = max(sizes.get(bucket.kind, 0), bucket.shard * self._world)
        return {
            (dtype, device): (
                torch.empty(size, dtype=dtype, device=device),
                torch.empty(size if device.type == "cpu" else 0, dtype=dtype, device=device),
            )
            for (dtype, device), size in sizes.items()
        }

    def _reduce(self, gradients: Gradients | None, bucket: Bucket, scratch: Scratch) -> Tensor:
        """This rank's shard of the bucket's average; lets go of the gradients that went in."""
        flat, parts = (memory[: bucket.shard * self._world] for memory in scratch[bucket.kind])
        mine: Gradients = [None if gradients is None else gradients[i] for i in bucket.indices]
        start = 0
        for size, gradient in zip(bucket.sizes, self._store.load(mine), strict=True):
            _divided(gradient, self._world, flat[start : start + size])
            start += size
        flat[start:].zero_()
        self._store.release(mine)
        if gradients is not None:
            for i in bucket.indices:
                gradients[i] = None
        return reduce_scatter(flat, parts, self._world, self._group)

    def _gather(self, shard: Tensor, bucket: Bucket) -> None:
        whole = shard.new_empty(bucket.shard * self._world)
        _collective("all_gather_single", "all_gather_into_tensor")(whole, shard, group=self._group)
        start = 0
        for i, size in zip(bucket.indices, bucket.sizes, strict=True):
            if self._present_P[i]:
                self._parameters[i].grad = whole[start : start + size].view(self._parameters[i].shape)
            start += size


def make_buckets(parameters: Sequence[nn.Parameter], world: int) -> list[Bucket]:
    """Parameters in buckets of limited length, in order, each of one dtype and device."""
    kinds: dict[Kind, list[list[int]]] = {}
    for i, parameter in enumerate(parameters):
        longest = CPU_BUCKET_ELEMENTS if parameter.device.type == "cpu" else BUCKET_ELEMENTS
        full = kinds.setdefault((parameter.dtype, parameter.device), [[]])
        if full[-1] and sum(parameters[j].numel() for j in full[-1]) + parameter.numel() > longest:
            full.append([])
        full[-1].append(i)
    buckets = []
    for kind, parts in kinds.items():
        for indices in parts:
            sizes = tuple(parameters[i].numel() for i in indices)
            buckets.append(Bucket(tuple(indices), sizes, -(-sum(sizes) // world), kind))
    return buckets


def _divided(gradient: Tensor | None, world: int, into: Tensor) -> None:
    """Writes ``gradient / world``; a missing gradient counts as zero."""
    if gradient is None:
        into.zero_()
    elif gradient.dtype == into.dtype:
        torch.div(gradient.view(-1), world, out=into)
    else:
        into.copy_(gradient.view(-1)).div_(world)


def reduce_scatter(flat: Tensor, parts: Tensor, world: int, group: Any) -> Tensor:
    """This rank's part, 1/N, of the sum of ``flat`` over ranks; ``parts`` is scratch memory of the same size.

    gloo's own reduce-scatter moves as many bytes as an all-reduce; there an exchange of parts and a local sum, in the
    order of ranks, moves half of them.
    """
    if flat.device.type == "cpu":
        dist.all_to_all_single(parts, flat, group=group)
        return parts.view(world, -1).sum(0)
    shard = flat.new_empty(flat.numel() // world)
    _collective("reduce_scatter_single", "reduce_scatter_tensor")(shard, flat, group=group)
    return shard


def _collective(name: str, former: str) -> Callable[..., Any]:
    """A collective by its name, or by the one it had in earlier versions of torch."""
    return getattr(dist, name, None) or getattr(dist, former)
