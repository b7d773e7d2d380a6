"""The two passes over gradients: inner products of all pairs of vectors, and their weighted sums.

Vectors (one gradient per domain, or two halves of it) come as lists of flat blocks on one device; spans say which
elements of a block belong to which unit. Each pass reads every element once from memory. Products are formed in
float32 (float64 where a block is float64, low precision widened) and added up over chunks in float64. What is
computed, and in which order it is added up, depends on the spans alone: equal input gives bitwise equal results, on
any number of threads. Nothing waits for an accelerator.

Where the work is done: ``_cpu`` on processors, ``_triton`` on CUDA, ``_plain`` on CUDA without Triton and elsewhere.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from . import _cpu, _plain
from ._spans import Blocks, Span, device_of

__all__ = ["Blocks", "Span", "unit_grams", "weighted_sums_"]


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products of V vectors over every unit, [U, V, V] float64, symmetric, on the blocks' device.

    ``blocks_VB[v][b]`` is block ``b`` of vector ``v``: one-dimensional and contiguous, of any floating dtype, or
    ``None`` where the vector has none (its products are zero). A unit's products add up over its spans.
    """
    num_vectors = len(blocks_VB)
    device = device_of(blocks_VB)
    spans = _filled(blocks_VB, spans)
    units, grams_SVV = _implementation(device).span_grams(blocks_VB, spans)
    gram_UVV = torch.zeros(num_units, num_vectors**2, dtype=torch.float64, device=device)
    gram_UVV.index_add_(0, units, grams_SVV.flatten(1))
    return gram_UVV.view(num_units, num_vectors, num_vectors)


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes ``sum_v weights_UV[unit, v] * blocks_VB[v][block]`` into ``targets_B[block]`` for every span.

    A target is one of its block's vectors (the very tensor, which is overwritten) or memory of its own, of any floating
    dtype. Vectors without the block are left out. A weight of exactly 1 is not multiplied with, so that ones give the
    plain sum. ``weights_UV`` is read on the host: keep it there.
    """
    spans = [span for span in _filled(blocks_VB, spans) if targets_B[span.block] is not None]
    _implementation(device_of(blocks_VB)).weighted_sums_(blocks_VB, targets_B, spans, weights_UV)


def _filled(blocks_VB: Blocks, spans: Sequence[Span]) -> list[Span]:
    """The spans with elements and at least one vector."""
    there = [any(block is not None for block in blocks) for blocks in zip(*blocks_VB, strict=True)]
    return [span for span in spans if span.high > span.low and there[span.block]]


def _implementation(device: torch.device) -> ModuleType:
    return _cpu if device.type == "cpu" else _plain
