"""Both passes with plain torch operations, on any device: CUDA without Triton, Apple's MPS, other accelerators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .spans import Blocks, Span, Term, cut, present, same_memory, terms_of, work_dtype

CHUNK = 1 << 24
"""Elements at a time, which bounds the scratch memory of low-precision gradients."""


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64 on the CPU; every span has elements and vectors."""
    present_B = present(blocks_VB)
    places: list[tuple[int, int, int]] = []
    products: list[Tensor] = []
    widest = work_dtype([block for _, blocks in present_B for block in blocks])
    for span in cut(spans, CHUNK):
        numbers, blocks = present_B[span.block]
        parts = [block[span.low : span.high].to(work_dtype(blocks)) for block in blocks]
        for i, first in enumerate(numbers):
            for j in range(i, len(numbers)):
                places.append((span.unit, first, numbers[j]))
                # Dot products, not matrix products: those may be set to round their factors (TF32).
                products.append(torch.dot(parts[i], parts[j]).to(widest))
    gram_UVV = torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    if products:
        # To the host first: not every device has float64.
        found = torch.stack(products).cpu().double()
        gram_UVV.index_put_(tuple(torch.tensor(places).T), found, accumulate=True)
    return gram_UVV + gram_UVV.triu(1).mT


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    present_B = present(blocks_VB)
    rows_U = weights_UV.tolist()
    for span in cut(spans, CHUNK):
        target = targets_B[span.block]
        assert target is not None
        into = target[span.low : span.high]
        sum_into(into, terms_of(span, present_B[span.block], into, rows_U[span.unit]))


def sum_into(into: Tensor, terms: Sequence[Term]) -> None:
    """Writes the weighted sum of terms of any dtypes; if ``into`` is one of them, it is the first."""
    (first, first_weight), *others = terms
    dtype = work_dtype([part for part, _ in terms])
    in_place = same_memory(first, into) and dtype == into.dtype
    total = into if in_place else first.to(dtype, copy=True)
    if first_weight != 1:
        total.mul_(first_weight)
    for part, weight in others:
        total.add_(part, alpha=weight)
    if not in_place:
        into.copy_(total)
