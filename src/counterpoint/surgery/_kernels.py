"""The two passes over gradients, on flat tensors of one device.

Both walk through the D gradients of a parameter in chunks, so that on a CPU a chunk of every gradient is in the cache
when it is used a second time. Products are formed in float32 (float64 for float64 gradients) and added up over chunks
in float64. On the CPU the work is cut into spans that Python threads share, each with one torch thread: torch's own
threads would be started anew for every chunk, which costs more than the chunk. What is computed, and in which order
it is added up, does not depend on the number of threads.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

CPU_CHUNK_BYTES = 3 << 20
"""Bytes of all D chunks together: small enough for a core's share of the cache, large enough that threads rarely wait
for each other's Python."""

CPU_SPAN = 1 << 22
"""Elements of a gradient that one thread works through before it looks for more."""

MAX_THREADS = 8
"""More threads than this would wait for each other's Python and for memory."""

DEVICE_CHUNK = 1 << 24
"""Elements of one chunk on an accelerator, which bounds the scratch memory of low-precision gradients."""

LOW_PRECISION = (torch.float16, torch.bfloat16)

Blocks = Sequence[Sequence[Tensor | None]]
"""Per vector a list of flat contiguous blocks; ``None`` where a vector has none."""

Item = TypeVar("Item")
Result = TypeVar("Result")


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
        parts = _common([flat[low:high] for flat in flats])
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


@dataclass(frozen=True)
class Span:
    """Elements ``low`` to ``high`` of one block of every vector, all inside one unit."""

    block: int
    unit: int
    low: int
    high: int

    @property
    def parameter(self) -> int:
        """The block's number, where blocks are parameters."""
        return self.block


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products of V vectors over every unit, [U, V, V] float64, symmetric, on the blocks' device.

    ``blocks_VB[v][b]`` is block ``b`` of vector ``v``: flat and contiguous, or ``None`` where the vector has none.
    A unit's products add up over its spans; nothing is read to the host.
    """
    num_vectors = len(blocks_VB)
    pieces = _cut(blocks_VB, spans)

    def products(span: Span) -> Tensor:
        parts = [block[span.low : span.high] for _, block in _present(blocks_VB, span.block)]
        return pair_products(parts, 1)[0]

    found = _run(products, pieces, _device(blocks_VB))
    flat = torch.zeros(num_units * num_vectors**2, dtype=torch.float64, device=_device(blocks_VB))
    if found:
        cells = [
            c
            for span in pieces
            for c in _cells(span.unit, [v for v, _ in _present(blocks_VB, span.block)], num_vectors)
        ]
        flat.index_add_(0, torch.tensor(cells, device=flat.device), torch.cat([part.to(flat.device) for part in found]))
    gram_UVV = flat.view(num_units, num_vectors, num_vectors)
    return gram_UVV + gram_UVV.triu(1).mT


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes ``sum_v weights_UV[unit, v] * blocks_VB[v][block]`` into ``targets_B[block]``, for all spans.

    A target may be one of the blocks (the same tensor) or another tensor of any floating dtype. A weight of exactly 1
    is not multiplied with, so that ones give the plain sum.
    """
    weights = weights_UV.tolist()

    def combine(span: Span) -> None:
        target = targets_B[span.block]
        mine = _present(blocks_VB, span.block)
        if target is None or not mine:
            return
        mine.sort(key=lambda item: item[1] is not target)  # stable: the target itself first, it is overwritten
        parts = [block[span.low : span.high] for _, block in mine]
        row = [[weights[span.unit][v] for v, _ in mine]]
        if mine[0][1] is target:
            weighted_sum_(parts, row)
        else:
            scratch = _widened(parts[0]).clone()
            weighted_sum_([scratch, *parts[1:]], row)
            target[span.low : span.high].copy_(scratch)

    _run(combine, _cut(blocks_VB, spans), _device(blocks_VB))


def _device(blocks_VB: Blocks) -> torch.device:
    return next((block.device for blocks in blocks_VB for block in blocks if block is not None), torch.device("cpu"))


def _present(blocks_VB: Blocks, b: int) -> list[tuple[int, Tensor]]:
    return [(v, block) for v, blocks in enumerate(blocks_VB) if (block := blocks[b]) is not None]


def _cut(blocks_VB: Blocks, spans: Sequence[Span]) -> list[Span]:
    """Spans no longer than one thread's work, without those for which no vector has a block."""
    longest = CPU_SPAN if _device(blocks_VB).type == "cpu" else DEVICE_CHUNK
    there = [any(blocks[b] is not None for blocks in blocks_VB) for b in range(len(blocks_VB[0]) if blocks_VB else 0)]
    return [
        Span(span.block, span.unit, low, min(low + longest, span.high))
        for span in spans
        if there[span.block]
        for low in range(span.low, span.high, longest)
    ]


def _cells(unit: int, present: list[int], num_vectors: int) -> list[int]:
    base = unit * num_vectors**2
    return [base + present[i] * num_vectors + present[j] for i, j in pairs(len(present))]


def _run(function: Callable[[Span], Result], pieces: list[Span], device: torch.device) -> list[Result]:
    if device.type != "cpu":
        return [function(piece) for piece in pieces]
    work = sum(piece.high - piece.low for piece in pieces)
    return in_threads(function, pieces, wanted=-(-work // CPU_SPAN))


def spans(sizes: Sequence[int], counts: Sequence[int], longest: int) -> list[Span]:
    """All elements of parameters of these sizes, each cut into ``counts`` equal units, in spans up to ``longest``."""
    found: list[Span] = []
    unit = 0
    for parameter, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        piece = size // count
        for number in range(count):
            end = (number + 1) * piece
            found += [
                Span(parameter, unit, low, min(low + longest, end)) for low in range(number * piece, end, longest)
            ]
            unit += 1
    return found


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], wanted: int) -> list[Result]:
    """``function`` of every item, in order, on up to ``wanted`` threads, each with one torch thread."""
    threads = torch.get_num_threads()
    workers = min(wanted, threads, MAX_THREADS)
    torch.set_num_threads(1)
    try:
        if workers < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # of this thread, and of those that start later


def _widened(part: Tensor) -> Tensor:
    return part.float() if part.dtype in LOW_PRECISION else part


def _common(parts: list[Tensor]) -> list[Tensor]:
    """The parts in one dtype, float32 or float64."""
    dtype = torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
    return [part.to(dtype) for part in parts]


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
    return max(1 << 12, CPU_CHUNK_BYTES // bytes_per_element)
