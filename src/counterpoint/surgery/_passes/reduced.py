"""Both passes where gradients are final when they are collected: one process, DDP's own reduction, FSDP2, tensors cut
over devices. Every parameter's part on this rank is one block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import _kernels
from .._kernels.spans import by_device, total
from .layout import own_spans
from .ranks import Ranks, check_agreement, check_words, sum_over_ranks
from .shards import is_dtensor, local
from .stores import DeviceStore, Gradients

Vector = tuple[str, int]
"""A domain, and which half of its micro-batches: 0 where a domain is not split."""

Held = Mapping[Vector, Gradients]


class OwnGradients:
    """Inner products and weighted sums of gradients that this rank holds whole, or holds its shard of."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], counts: Sequence[int], ranks: Ranks | None, store: DeviceStore
    ) -> None:
        self._parameters = parameters
        self.ranks = ranks
        self._store = store
        self._num_units = sum(counts)
        self._spans_B: list[list[_kernels.Span]] = [[] for _ in parameters]
        for span in own_spans(parameters, counts):
            self._spans_B[span.block].append(span)

    def gram(
        self, held: Held, collected: Mapping[Vector, int], sequence: Sequence[str], step: int
    ) -> tuple[dict[Vector, int], Tensor]:
        """The vectors of this step with their numbers of micro-batches, in the order of names, and their inner
        products [U, V, V] over all ranks, float64 on the CPU.

        ``sequence`` are the domains in the order in which this rank collected them; the one all-reduce tells whether
        all ranks agree. Raises ``RankMismatchError`` on all of them where they do not.
        """
        vectors = dict(sorted(collected.items()))
        if not vectors:
            return vectors, torch.empty(self._num_units, 0, 0, dtype=torch.float64)
        mine = self._contribution(held, list(vectors))
        gram_UVV, sums = sum_over_ranks(mine, check_words(sequence), self.ranks)
        if self.ranks is not None:
            check_agreement(sums, self.ranks, sequence, step)
        return vectors, gram_UVV

    def _contribution(self, held: Held, vectors: Sequence[Vector]) -> Tensor:
        owns_B = self.ranks.owns_P if self.ranks else [True] * len(self._parameters)
        return total(
            _kernels.unit_grams(blocks_VB, self._spans(low, blocks_VB, lambda block: owns_B[block]), self._num_units)
            for low, blocks_VB in self._batches(held, vectors)
        )

    def write(self, held: Held, vectors: Sequence[Vector], weights_UV: Tensor) -> None:
        """Sets ``.grad`` to the weighted sums; a parameter for which no vector has a gradient gets none."""
        for low, blocks_VB in self._batches(held, vectors):
            parameters = self._parameters[low : low + len(blocks_VB[0])]
            targets_B = [
                _target(
                    parameter, [(blocks[i], held[v][low + i]) for blocks, v in zip(blocks_VB, vectors, strict=True)]
                )
                for i, parameter in enumerate(parameters)
            ]
            spans = self._spans(low, blocks_VB, lambda block: True)
            _kernels.weighted_sums_(blocks_VB, targets_B, spans, weights_UV)
            for parameter, target in zip(parameters, targets_B, strict=True):
                if target is not None:
                    parameter.grad = _as_gradient(target, parameter)

    def _batches(self, held: Held, vectors: Sequence[Vector]) -> Iterator[tuple[int, list[Gradients]]]:
        """Stretches of flat blocks on one device; blocks on other devices come in batches of their own."""
        for low, held_VB in self._store.batches([held[vector] for vector in vectors]):
            blocks_VB = [[None if g is None else g.view(-1) for g in blocks] for blocks in held_VB]
            for only_VB in by_device(blocks_VB):
                yield low, only_VB

    def _spans(self, low: int, blocks_VB: list[Gradients], wanted: Callable[[int], bool]) -> list[_kernels.Span]:
        """The spans of the batch's blocks that some vector has, numbered as in the batch."""
        return [
            replace(span, block=i) if low else span
            for i in range(len(blocks_VB[0]))
            if wanted(low + i) and any(blocks[i] is not None for blocks in blocks_VB)
            for span in self._spans_B[low + i]
        ]


def _target(parameter: nn.Parameter, blocks_V: list[tuple[Tensor | None, Tensor | None]]) -> Tensor | None:
    """Where the sum goes: into a gradient that is as precise as the parameter, or new memory; None without gradients.

    ``blocks_V`` holds each vector's block and what stands for it in the buffers. A gradient that never left the device
    is preferred to one that came back: its memory is there until the end.
    """
    there = [(block, kept) for block, kept in blocks_V if block is not None]
    if not there:
        return None
    fitting = [(block, kept) for block, kept in there if block.dtype == parameter.dtype]
    stayed = [block for block, kept in fitting if kept is not None and block.data_ptr() == kept.data_ptr()]
    if fitting:
        return stayed[0] if stayed else fitting[0][0]
    return torch.empty_like(there[0][0], dtype=parameter.dtype)


def _as_gradient(target: Tensor, parameter: nn.Parameter) -> Tensor:
    if not is_dtensor(parameter):
        return target.view(parameter.shape)
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        target.view(local(parameter).shape),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
