"""The two passes over gradients: inner products of all pairs of vectors, and their weighted sums.

Vectors (one gradient per domain, or two halves of it) come as lists of flat blocks; spans say which elements of a block
belong to which unit. Each pass reads every element once from memory. Products are formed in float32 (float64 where a
block is float64, low precision widened) and added up over chunks in float64. What is computed, and in which order it is
added up, depends on the spans alone: equal input gives bitwise equal results, on any number of threads.

Where the work is done: ``fused`` on CUDA, ``plain`` everywhere else.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from . import plain
from .spans import Blocks, Span

__all__ = ["Blocks", "Span", "add_grams", "unit_grams", "weighted_sums_"]

MAX_FUSED = 16
"""Vectors up to which the fused kernels are used; for more they would hold too little of each at a time."""


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products of V vectors over every unit, [U, V, V] float64, symmetric, on the CPU or the blocks' device.

    ``blocks_VB[v][b]`` is block ``b`` of vector ``v``: one-dimensional and contiguous, of any floating dtype, or
    ``None`` where the vector has none (its products are zero). A unit's products add up over its spans.
    """
    gram_UVV = None
    for device, only_VB in _by_device(blocks_VB):
        implementation = _implementation(device, len(blocks_VB))
        gram_UVV = add_grams(gram_UVV, implementation.unit_grams(only_VB, _filled(only_VB, spans), num_units))
    if gram_UVV is None:
        return torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    return gram_UVV


def add_grams(first_UVV: Tensor | None, second_UVV: Tensor) -> Tensor:
    """The sum, on the first one's device."""
    return second_UVV if first_UVV is None else first_UVV + second_UVV.to(first_UVV.device)


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes ``sum_v weights_UV[unit, v] * blocks_VB[v][block]`` into ``targets_B[block]`` for every span.

    A target is one of its block's vectors (the very tensor, which is overwritten) or memory of its own, of any floating
    dtype. Vectors without the block are left out. A weight of exactly 1 is not multiplied with, so that ones give the
    plain sum. ``weights_UV`` is read on the host: keep it there.
    """
    for device, only_VB in _by_device(blocks_VB):
        there = [span for span in _filled(only_VB, spans) if targets_B[span.block] is not None]
        _implementation(device, len(blocks_VB)).weighted_sums_(only_VB, targets_B, there, weights_UV)


def _by_device(blocks_VB: Blocks) -> Iterator[tuple[torch.device, Blocks]]:
    """The blocks, one set for each device they lie on, in which those on other devices are missing."""
    for device in sorted({b.device for blocks in blocks_VB for b in blocks if b is not None}, key=str):
        yield device, [[b if b is not None and b.device == device else None for b in blocks] for blocks in blocks_VB]


def _filled(blocks_VB: Blocks, spans: Sequence[Span]) -> list[Span]:
    """The spans with elements and at least one vector."""
    there = [any(block is not None for block in blocks) for blocks in zip(*blocks_VB, strict=True)]
    return [span for span in spans if span.high > span.low and there[span.block]]


def _implementation(device: torch.device, num_vectors: int) -> ModuleType:
    fused = _fused_on(device) if device.type == "cuda" and num_vectors <= MAX_FUSED else None
    return fused or plain


@cache
def _fused_on(device: torch.device) -> ModuleType | None:
    """The fused kernels, once they have shown on this device that they work; else ``None``, with a warning."""
    try:
        from . import fused

        wrong = trial(fused, device)
        if wrong < 1e-5:
            return fused
        reason = f"on a small example they were off by {wrong:.1e}"
    except ImportError as error:
        reason = f"{error} (install triton, which torch's packages for CUDA bring along)"
    except fused.FAILURES as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"Surgery on {device} does without its fused kernels, which gives the same result several times more slowly: "
        f"{reason}.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def trial(implementation: ModuleType, device: torch.device) -> float:
    """Largest difference between an implementation and plain operations on a small example, relative."""
    generator = torch.Generator().manual_seed(0)
    spans = [Span(0, 0, 0, 4100), Span(0, 1, 4100, 70_001), Span(1, 1, 0, 33)]
    dtypes = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16))
    sizes = (70_001, 33)
    blocks_VB = [
        [torch.randn(size, generator=generator).to(device, dtype) for size, dtype in zip(sizes, row, strict=True)]
        for row in dtypes
    ]
    weights_UV = torch.rand(2, 3, generator=generator, dtype=torch.float64)
    outcomes: list[list[Tensor]] = []
    for one in (plain, implementation):
        targets = [torch.zeros(size, device=device) for size in sizes]
        one.weighted_sums_(blocks_VB, targets, spans, weights_UV)
        outcomes.append([one.unit_grams(blocks_VB, spans, 2), *targets])
    return max(float((a.cpu() - b.cpu()).abs().max() / a.abs().max()) for a, b in zip(*outcomes, strict=True))
