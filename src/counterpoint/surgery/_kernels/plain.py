"""Both passes with plain torch operations, on any device: CUDA without Triton, other accelerators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .spans import Blocks, Span, cut, device_of, present, same_memory, sum_units, to_device, work_dtype

CHUNK = 1 << 24
"""Elements at a time, which bounds the scratch memory of low-precision gradients."""


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64; every span has elements and vectors.

    Dot products, not matrix products: those may be set to round their factors (TF32).
    """
    device, num_vectors = device_of(blocks_VB), len(blocks_VB)
    present_B = present(blocks_VB)
    pieces = cut(spans, CHUNK)
    cells: list[int] = []
    products: list[Tensor] = []
    for number, span in enumerate(pieces):
        numbers, blocks = present_B[span.block]
        dtype = work_dtype(blocks)
        parts = [block[span.low : span.high].to(dtype) for block in blocks]
        for i, first in enumerate(numbers):
            for j in range(i, len(numbers)):
                cells.append((number * num_vectors + first) * num_vectors + numbers[j])
                products.append(torch.dot(parts[i], parts[j]).double())
    flat = torch.zeros(len(pieces) * num_vectors**2, dtype=torch.float64, device=device)
    if products:
        flat[to_device(torch.tensor(cells), device)] = torch.stack(products)
    upper_SVV = flat.view(-1, num_vectors, num_vectors)
    units_S = torch.tensor([span.unit for span in pieces], dtype=torch.int64)
    return sum_units(to_device(units_S, device), upper_SVV + upper_SVV.triu(1).mT, num_units)


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    present_B = present(blocks_VB)
    rows_U = weights_UV.tolist()
    for span in cut(spans, CHUNK):
        numbers, blocks = present_B[span.block]
        target = targets_B[span.block]
        assert target is not None
        terms = [(block, rows_U[span.unit][v]) for v, block in zip(numbers, blocks, strict=True)]
        terms.sort(key=lambda term: not same_memory(term[0], target))  # the target itself first: it is overwritten
        dtype = work_dtype(blocks)
        into = target[span.low : span.high]
        (first, first_weight), *others = terms
        total = into if same_memory(first, target) and dtype == target.dtype else torch.empty_like(into, dtype=dtype)
        if not same_memory(first, total):
            total.copy_(first[span.low : span.high])
        if first_weight != 1:
            total.mul_(first_weight)
        for block, weight in others:
            total.add_(block[span.low : span.high], alpha=weight)
        if total is not into:
            into.copy_(total)
