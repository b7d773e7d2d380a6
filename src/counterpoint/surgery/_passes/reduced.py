"""Both passes where gradients are final when they are collected: one process, DDP's own reduction, FSDP2, tensors cut
over devices. Every parameter's part on this rank is one block."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from .. import _kernels
from .ranks import Ranks, check_agreement, check_words, sum_over_ranks
from .shards import as_gradient, held_spans
from .stores import DeviceStore, Gradients, Held, Vector


class ReducedGradients:
    """Inner products and weighted sums of gradients that this rank holds whole, or holds its shard of."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], counts: Sequence[int], ranks: Ranks | None, store: DeviceStore
    ) -> None:
        self._parameters = parameters
        self.ranks = ranks
        self._store = store
        self._num_units = sum(counts)
        self._spans_P = held_spans(parameters, counts)

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
        owns_P = self.ranks.owns_P if self.ranks else [True] * len(self._parameters)
        counted_P = [spans if mine else [] for spans, mine in zip(self._spans_P, owns_P, strict=True)]
        mine = None
        for low, blocks_VB in self._batches(held, list(vectors)):
            spans = _numbered(counted_P, low, len(blocks_VB[0]))
            mine = _kernels.add_grams(mine, _kernels.unit_grams(blocks_VB, spans, self._num_units))
        assert mine is not None
        gram_UVV, sums = sum_over_ranks(mine, check_words(sequence), self.ranks)
        if self.ranks is not None:
            check_agreement(sums, self.ranks, sequence, step)
        return vectors, gram_UVV

    def write(self, held: Held, vectors: Sequence[Vector], weights_UV: Tensor) -> None:
        """Sets ``.grad`` to the weighted sums; a parameter for which no vector has a gradient gets none."""
        for low, blocks_VB in self._batches(held, vectors):
            number = len(blocks_VB[0])
            parameters = self._parameters[low : low + number]
            targets_B = [
                _target(p, [blocks[i] for blocks in blocks_VB], [held[v][low + i] for v in vectors])
                for i, p in enumerate(parameters)
            ]
            _kernels.weighted_sums_(blocks_VB, targets_B, _numbered(self._spans_P, low, number), weights_UV)
            for parameter, target in zip(parameters, targets_B, strict=True):
                if target is not None:
                    parameter.grad = as_gradient(target, parameter)

    def _batches(self, held: Held, vectors: Sequence[Vector]) -> Iterator[tuple[int, list[Gradients]]]:
        """Runs of parameters: the number of the first one, and every vector's flat blocks."""
        for low, held_VB in self._store.batches([held[vector] for vector in vectors]):
            yield low, [[None if g is None else g.view(-1) for g in blocks] for blocks in held_VB]


def _numbered(spans_P: Sequence[Sequence[_kernels.Span]], low: int, number: int) -> list[_kernels.Span]:
    """The spans of ``number`` parameters from ``low`` on, their blocks numbered from 0."""
    found = [span for spans in spans_P[low : low + number] for span in spans]
    return [replace(span, block=span.block - low) for span in found] if low else found


def _target(parameter: nn.Parameter, blocks_V: Gradients, held_V: Gradients) -> Tensor | None:
    """Where the sum goes: a gradient as precise as the parameter, or new memory; None without gradients."""
    there = [(block, kept) for block, kept in zip(blocks_V, held_V, strict=True) if block is not None]
    if not there:
        return None
    fitting = [(block, kept) for block, kept in there if block.dtype == parameter.dtype]
    # Reuse a gradient that stayed on the device: buffers copied back from the host are freed after this batch.
    stayed = [block for block, kept in fitting if kept is not None and block.data_ptr() == kept.data_ptr()]
    if fitting:
        return stayed[0] if stayed else fitting[0][0]
    return torch.empty_like(there[0][0], dtype=parameter.dtype)
