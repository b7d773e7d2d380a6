"""Both passes with plain torch operations, on any device: processors, Apple's MPS, CUDA without Triton.

On a processor, memory feeds a core some 10 GB/s, its own cache ten times that. So a chunk of every vector is read once
from memory and then used from the cache: for the inner products by one dot product per pair, for the sums by adding
vector after vector to the target's chunk. Python threads share the work, each with one torch thread: torch's own would
be woken anew for every chunk, which costs more than the chunk. They run at the same time only while they are inside
torch, so chunks are as long as the cache allows, and a job's sums are one call.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from .spans import Blocks, Span, cut, present, same_memory, work_dtype

CHUNK_BYTES = 1 << 26
"""Bytes of a vector's chunk where there is no cache to fit, which bounds the scratch memory."""

DOT_BYTES = 1 << 20
"""The same for the inner products on a processor. With shorter chunks threads wait for each other's Python; with longer
ones sums of squares in float32 are off by more than 3e-6."""

SUM_BYTES = 1 << 19
"""The same for the sums on a processor."""

JOB = 1 << 22
"""Elements of every vector that a thread works through before it looks for more: waking one for less costs more."""

ALIGNED = 16
"""A chunk begins at a multiple of so many elements, where vector registers are loaded at once."""

MAX_THREADS = 8
"""More threads than this would wait for each other's Python and for memory."""

Key = tuple[tuple[int, ...], torch.dtype]
"""The vectors that a block has, by number, and the dtype of their products."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64 on the CPU; every span has elements and vectors."""
    present_B = present(blocks_VB)

    def multiply(job: list[Span]) -> dict[Key, tuple[list[int], Tensor]]:
        """The unit of every chunk, and the products of all pairs in it."""
        found: dict[Key, tuple[list[int], list[Tensor]]] = {}
        for span in job:
            numbers, blocks = present_B[span.block]
            dtype, pairs = work_dtype(blocks), _pairs(len(numbers))
            units, products = found.setdefault((tuple(numbers), dtype), ([], []))
            parts = [block[span.low : span.high] for block in blocks]
            for pieces in _chunks(parts, DOT_BYTES // dtype.itemsize):
                chunk = [piece.to(dtype) for piece in pieces]
                units.append(span.unit)
                # Dot products, not matrix products: those may be set to round their factors (TF32).
                products += map(torch.dot, [chunk[i] for i, _ in pairs], [chunk[j] for _, j in pairs])
        # To the host first: not every device has float64.
        return {key: (units, torch.stack(products).cpu().double()) for key, (units, products) in found.items()}

    tables = in_threads(multiply, _jobs(spans))
    gram_UVV = torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    for numbers, dtype in dict.fromkeys(key for table in tables for key in table):
        units, products = zip(*(table[numbers, dtype] for table in tables if (numbers, dtype) in table), strict=True)
        first_P, second_P = torch.tensor([(numbers[i], numbers[j]) for i, j in _pairs(len(numbers))]).T
        units_C = torch.tensor([unit for part in units for unit in part])
        chunks_CVV = gram_UVV.new_zeros(len(units_C), *gram_UVV.shape[1:])
        chunks_CVV[:, first_P, second_P] = torch.cat(products).view(len(units_C), -1)
        chunks_CVV[:, second_P, first_P] = chunks_CVV[:, first_P, second_P]
        gram_UVV.index_add_(0, units_C, chunks_CVV)
    return gram_UVV


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    present_B = present(blocks_VB)
    rows_U = weights_UV.tolist()

    def combine(job: list[Span]) -> None:
        sums = _Sums()
        for span in job:
            (numbers, blocks), target = present_B[span.block], targets_B[span.block]
            assert target is not None
            terms = [(block, rows_U[span.unit][v]) for v, block in zip(numbers, blocks, strict=True)]
            terms.sort(key=lambda term: not same_memory(term[0], target))  # the target first: it is overwritten
            parts = [block[span.low : span.high] for block in (target, *(block for block, _ in terms))]
            weights, dtype = [weight for _, weight in terms], work_dtype(blocks)
            for into, *pieces in _chunks(parts, SUM_BYTES // dtype.itemsize):
                if same_memory(pieces[0], into) and all(piece.dtype == dtype for piece in pieces):
                    sums.plan(into, pieces, weights)
                else:
                    _sum_into(into, pieces, weights, dtype)
        sums.run()

    in_threads(combine, _jobs(spans))


class _Sums:
    """Sums in the memory of their first terms, gathered into one call: on a processor it goes through them in order."""

    def __init__(self) -> None:
        self._targets: list[Tensor] = []
        self._terms: list[Tensor] = []
        self._weights: list[float] = []

    def plan(self, into: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> None:
        own, terms, weights = weights[0], terms[1:], weights[1:]
        if own != 1 and 0.5 <= own <= 2:  # adding (own - 1) times itself is as exact as multiplying with such a number
            terms, weights = [into, *terms], [own - 1, *weights]
        elif own != 1:
            into.mul_(own)
        self._targets += [into] * len(terms)
        self._terms += terms
        self._weights += weights

    def run(self) -> None:
        if self._targets:
            ones = {dtype: self._targets[0].new_ones(1, dtype=dtype) for dtype in {t.dtype for t in self._targets}}
            factors = [ones[t.dtype] for t in self._targets]
            torch._foreach_addcmul_(self._targets, self._terms, factors, self._weights)


def _sum_into(into: Tensor, terms: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> None:
    """Writes the weighted sum, formed in ``dtype``, through scratch memory."""
    total = terms[0].to(dtype, copy=True)
    if weights[0] != 1:
        total.mul_(weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total.add_(term, alpha=weight)
    into.copy_(total)


def _pairs(num_vectors: int) -> list[tuple[int, int]]:
    """All pairs: a vector meets itself when it comes from memory, and then the others, which lie in the cache."""
    return [(i, j) for j in range(num_vectors) for i in range(j, -1, -1)]


def _chunks(parts: Sequence[Tensor], longest: int) -> Sequence[Sequence[Tensor]]:
    """The parts in about equal chunks of up to about ``longest`` elements on a processor, of many more elsewhere."""
    if parts[0].device.type != "cpu":
        longest = max(longest, CHUNK_BYTES // 4)
    whole = parts[0].numel()
    if whole <= longest:
        return [parts]
    size = -(-whole // -(-whole // longest))
    return list(zip(*(part.split(size + -size % ALIGNED) for part in parts), strict=True))


def _jobs(spans: Sequence[Span]) -> list[list[Span]]:
    """The spans in portions of about one job, none longer: spans alone decide, not the number of threads."""
    jobs: list[list[Span]] = []
    full = JOB
    for span in cut(spans, JOB):
        size = span.high - span.low
        if full + size > JOB:
            jobs.append([])
            full = 0
        jobs[-1].append(span)
        full += size
    return jobs


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of every item, in order, on as many threads as torch may use."""
    threads = torch.get_num_threads()
    workers = min(len(items), threads, MAX_THREADS)
    torch.set_num_threads(1)
    try:
        if workers < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # of this thread, and of those that start later
