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


def pair_products(flat_D: Sequence[Tensor | None], num_pieces: int, chunk: int | None = None) -> Tensor:
    """Inner products [pieces, D, D] of a parameter's flat gradients, float64, on their device.

    Each gradient is cut into ``num_pieces`` equal pieces; ``None`` stands for a gradient of zeros.
    """
    present = [d for d, flat in enumerate(flat_D) if flat is not None]
    flats = [flat for flat in flat_D if flat is not None]
    pairs = [(i, j) for i in range(len(flats)) for j in range(i, len(flats))]
    products: list[Tensor] = []
    rows: list[int] = []
    for piece, low, high in _chunks(flats, num_pieces, chunk):
        parts = [_widened(flat[low:high]) for flat in flats]
        products += [torch.dot(parts[i], parts[j]) for i, j in pairs]
        rows.append(piece)
    device = flats[0].device
    gram = torch.zeros(num_pieces, len(flat_D), len(flat_D), dtype=torch.float64, device=device)
    if not rows:
        return gram
    per_chunk = torch.stack(products).double().view(len(rows), len(pairs))
    per_piece = torch.zeros(num_pieces, len(pairs), dtype=torch.float64, device=device)
    per_piece.index_add_(0, torch.tensor(rows, device=device), per_chunk)
    for column, (i, j) in enumerate(pairs):
        gram[:, present[i], present[j]] = per_piece[:, column]
        gram[:, present[j], present[i]] = per_piece[:, column]
    return gram


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
