"""The two passes over gradients, on flat tensors of one device.

Both walk through the D gradients of a parameter in chunks, so that on a CPU a chunk of every gradient is in the cache
when it is used a second time. Products are formed in float32 (float64 for float64 gradients) and added up over chunks
in float64. On the CPU the passes run in half the threads: they are bound by memory, and starting more threads for a
chunk costs more than they bring.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

CPU_CHUNK_BYTES = 1 << 20
"""Bytes of all D chunks together, per thread: they must fit a core's second-level cache."""

DEVICE_CHUNK = 1 << 24
"""Elements of one chunk on an accelerator, which bounds the scratch memory of low-precision gradients."""

LOW_PRECISION = (torch.float16, torch.bfloat16)


def pairs(number: int) -> list[tuple[int, int]]:
    """The pairs ``(i, j)`` with ``i <= j`` of that many things, in the order of ``pair_products``."""
    return [(i, j) for i in range(number) for j in range(i, number)]


def pair_products(flats: Sequence[Tensor], num_pieces: int, chunk: int | None = None) -> Tensor:
    """Inner products [pieces, pairs] of flat gradients, float64 and on their device, without waiting for it.

    Each gradient is cut into ``num_pieces`` equal pieces.
    """
    both = pairs(len(flats))
    products: list[Tensor] = []
    for _, low, high in _chunks(flats, num_pieces, chunk):
        parts = [_widened(flat[low:high]) for flat in flats]
        products += [torch.dot(parts[i], parts[j]) for i, j in both]
    if not products:
        return torch.zeros(num_pieces, len(both), dtype=torch.float64, device=flats[0].device)
    return torch.stack(products).double().view(num_pieces, -1, len(both)).sum(1)


def weighted_sum_(flats: Sequence[Tensor], weights: Sequence[Sequence[float]], chunk: int | None = None) -> None:
    """Writes the weighted sum of the flat gradients into the first of them; ``weights[piece][d]``.

    A weight of exactly 1 is not multiplied with, so that ones give the plain sum.
    """
    if len(flats) == 1 and all(row[0] == 1 for row in weights):
        return
    for piece, low, high in _chunks(flats, len(weights), chunk):
        row = weights[piece]
        target = flats[0][low:high]
        total = _widened(target)
        if row[0] != 1:
            total.mul_(row[0])
        for flat, weight in zip(flats[1:], row[1:], strict=True):
            total.add_(flat[low:high], alpha=weight)
        if total is not target:
            target.copy_(total)


@contextmanager
def few_threads() -> Iterator[None]:
    """Half the CPU threads inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _widened(part: Tensor) -> Tensor:
    return part.float() if part.dtype in LOW_PRECISION else part


def _chunks(flats: Sequence[Tensor], num_pieces: int, chunk: int | None) -> Iterator[tuple[int, int, int]]:
    """``(piece, low, high)`` over all pieces, each cut into chunks."""
    size = flats[0].numel() // num_pieces
    chunk = chunk or _chunk_size(flats)
    for piece in range(num_pieces):
        for low in range(piece * size, (piece + 1) * size, chunk):
            yield piece, low, min(low + chunk, (piece + 1) * size)


def _chunk_size(flats: Sequence[Tensor]) -> int:
    if flats[0].device.type != "cpu":
        return DEVICE_CHUNK
    bytes_per_element = max(4, flats[0].element_size()) * len(flats)
    return max(1 << 12, CPU_CHUNK_BYTES * torch.get_num_threads() // bytes_per_element)
