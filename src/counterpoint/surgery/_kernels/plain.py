"""Both passes with plain torch operations, on any device: processors, Apple's MPS, CUDA without Triton.

On a processor, memory feeds a core some 10 GB/s, its own cache ten times that. So a chunk of every vector is read once
from memory and then used from the cache: for the inner products by one dot product per pair, for the sums by adding
vector after vector to the target's chunk. Python threads share the work, each with one torch thread: torch's own would
be woken anew for every chunk, which costs more than the chunk. They run at the same time only while they are inside
torch, so chunks are as long as the cache allows.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from .spans import Blocks, Span, cut, present, same_memory, work_dtype

CHUNK = 1 << 17
"""Elements of a vector's chunk on a processor. With shorter chunks threads wait for each other's Python; longer ones
leave the cache, and sums of squares in float32 lose digits."""

FREE_CHUNK = 1 << 24
"""The same where there is no cache to fit; it bounds the scratch memory."""

JOB = 1 << 22
"""Elements of every vector that a thread works through before it looks for more: waking one for less costs more."""

MAX_THREADS = 8
"""More threads than this would wait for each other's Python and for memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64 on the CPU; every span has elements and vectors."""
    present_B = present(blocks_VB)

    def multiply(job: list[Span]) -> tuple[list[tuple[int, int, int]], Tensor]:
        """(unit, vector, vector) of every product of two chunks, and the products."""
        places, products = [], []
        for span in job:
            numbers, blocks = present_B[span.block]
            dtype = work_dtype(blocks)
            # A vector meets itself when it comes from memory, and then the others, which lie in the cache.
            pairs = [(i, j) for j in range(len(numbers)) for i in range(j, -1, -1)]
            triples = [(span.unit, numbers[i], numbers[j]) for i, j in pairs]
            for pieces in _chunks([block[span.low : span.high] for block in blocks]):
                chunk = [piece.to(dtype) for piece in pieces]
                places += triples
                # Dot products, not matrix products: those may be set to round their factors (TF32).
                products += [torch.dot(chunk[i], chunk[j]) for i, j in pairs]
        return places, torch.stack(products).cpu().double()  # to the host first: not every device has float64

    gram_UVV = torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    for places, products in in_threads(multiply, _jobs(spans)):
        gram_UVV.index_put_(tuple(torch.tensor(places).T), products, accumulate=True)
    return gram_UVV + gram_UVV.triu(1).mT


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    present_B = present(blocks_VB)
    rows_U = weights_UV.tolist()

    def combine(job: list[Span]) -> None:
        for span in job:
            (numbers, blocks), target = present_B[span.block], targets_B[span.block]
            assert target is not None
            terms = [(block, rows_U[span.unit][v]) for v, block in zip(numbers, blocks, strict=True)]
            terms.sort(key=lambda term: not same_memory(term[0], target))  # the target first: it is overwritten
            in_place = same_memory(terms[0][0], target) and target.dtype == work_dtype(blocks)
            parts = [block[span.low : span.high] for block in (target, *(block for block, _ in terms))]
            for into, first, *others in _chunks(parts):
                total = into if in_place else first.to(work_dtype(blocks), copy=True)
                if terms[0][1] != 1:
                    total.mul_(terms[0][1])
                for other, (_, weight) in zip(others, terms[1:], strict=True):
                    total.add_(other, alpha=weight)
                if not in_place:
                    into.copy_(total)

    in_threads(combine, _jobs(spans))


def _chunks(parts: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
    """The parts in chunks of about equal length."""
    number = -(-parts[0].numel() // (CHUNK if parts[0].device.type == "cpu" else FREE_CHUNK))
    size = -(-parts[0].numel() // (16 * number)) * 16  # vector registers are loaded at once from such places
    return list(zip(*(part.split(size) for part in parts), strict=True))


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
