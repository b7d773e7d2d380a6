"""Both passes on processors, in chunks that stay in a cache.

Memory feeds a core some 10 GB/s, its own cache ten times that. So a chunk of every vector is read once from memory and
then used from the cache: for the inner products by one dot product per pair, for the sums by adding vector after vector
to the target's chunk.

Python threads share the work, each with one torch thread: torch's own would be woken anew for every chunk, which costs
more than the chunk. They run at the same time as long as they are inside torch, and a thread that finds the interpreter
taken sleeps for longer than a short call takes. So calls are few and long, and the sums of many chunks are one call: on
a processor ``torch._foreach_*`` goes through its lists in order.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from .plain import sum_into
from .spans import LOW_PRECISION, Blocks, Span, Term, cut, present, same_memory, terms_of, work_dtype

JOB = 1 << 22
"""Elements of every vector that a thread works through before it looks for more: waking one for less costs more."""

DOT_BYTES = 1 << 20
"""Bytes of a vector's chunk for the inner products. With shorter chunks threads wait for each other's Python; with
longer ones sums of squares in float32 are off by more than 3e-6."""

SUM_BYTES = 1 << 19
"""Bytes of a target's chunk, which stays in the cache while vector after vector is added to it."""

ALIGNED = 16
"""A chunk begins at a multiple of so many elements, where vector registers are loaded at once."""

MAX_THREADS = 8
"""More threads than this would wait for each other's Python and for memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64; every span has elements and vectors."""
    present_B = present(blocks_VB)

    def multiply(job: list[Span]) -> dict[tuple[tuple[int, ...], torch.dtype], tuple[list[int], Tensor]]:
        """For the vectors (and dtype) that blocks have: each chunk's unit, and the products of all its pairs."""
        found: dict[tuple[tuple[int, ...], torch.dtype], tuple[list[int], list[Tensor]]] = {}
        for span in job:
            numbers, blocks = present_B[span.block]
            units, products = found.setdefault((tuple(numbers), work_dtype(blocks)), ([], []))
            pairs = _pairs(len(numbers))
            for chunk in _chunks([block[span.low : span.high] for block in blocks]):
                units.append(span.unit)
                products += map(torch.dot, [chunk[i] for i, _ in pairs], [chunk[j] for _, j in pairs])
        return {key: (units, torch.stack(products)) for key, (units, products) in found.items()}

    tables = in_threads(multiply, _jobs(spans))
    gram_UVV = torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    for key in dict.fromkeys(key for table in tables for key in table):
        units, products = zip(*(table[key] for table in tables if key in table), strict=True)
        first_P, second_P = torch.tensor([(key[0][i], key[0][j]) for i, j in _pairs(len(key[0]))]).T
        units_C = torch.tensor([unit for part in units for unit in part])
        chunks_CVV = gram_UVV.new_zeros(len(units_C), *gram_UVV.shape[1:])
        chunks_CVV[:, first_P, second_P] = torch.cat(products).view(len(units_C), -1).double()
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
        calls = _Calls()
        for span in job:
            target = targets_B[span.block]
            assert target is not None
            into = target[span.low : span.high]
            terms = terms_of(span, present_B[span.block], into, rows_U[span.unit])
            parts, weights = [part for part, _ in terms], [weight for _, weight in terms]
            if same_memory(parts[0], into) and _one_dtype(parts):
                calls.add(terms)
                continue
            size = SUM_BYTES // work_dtype(parts).itemsize
            for chunk, *pieces in zip(*(part.split(size) for part in (into, *parts)), strict=True):
                sum_into(chunk, list(zip(pieces, weights, strict=True)))
        calls.run()

    in_threads(combine, _jobs(spans))


class _Calls:
    """Sums of one precise dtype into the first term's memory, gathered into one call per dtype."""

    def __init__(self) -> None:
        self._lists: dict[torch.dtype, tuple[list[Tensor], list[Tensor], list[float]]] = {}

    def add(self, terms: Sequence[Term]) -> None:
        """Plans ``first = sum of weight * term``, chunk by chunk."""
        (target, own_weight), *others = terms
        # The target's own weight w is applied by adding (w - 1) times itself, where that is as exact as multiplying.
        added = 0.5 <= own_weight <= 2.0
        addends = [(target, own_weight - 1.0), *others] if added and own_weight != 1.0 else others
        if added and not addends:
            return
        size = SUM_BYTES // target.element_size()
        for into, *pieces in zip(*(_split(part, size) for part in (target, *(a for a, _ in addends))), strict=True):
            if not added:
                into.mul_(own_weight)
            targets, parts, factors = self._lists.setdefault(into.dtype, ([], [], []))
            targets += [into] * len(pieces)
            parts += pieces
            factors += [weight for _, weight in addends]
            if not added:
                self.run()  # while the chunk is in the cache

    def run(self) -> None:
        """Does what was planned, in order."""
        for dtype, (targets, parts, factors) in self._lists.items():
            if targets:
                torch._foreach_addcmul_(targets, parts, [torch.ones(1, dtype=dtype)] * len(targets), factors)
        self._lists.clear()


def _pairs(num_vectors: int) -> list[tuple[int, int]]:
    """All pairs: a vector meets itself when it comes from memory, and then the others, which lie in the cache."""
    return [(i, j) for j in range(num_vectors) for i in range(j, -1, -1)]


def _chunks(parts: list[Tensor]) -> Iterator[Sequence[Tensor]]:
    """The parts in about equal chunks that stay in the cache, of one precise dtype."""
    whole, dtype = parts[0].numel(), work_dtype(parts)
    size = -(-whole // -(-whole // (DOT_BYTES // dtype.itemsize)))
    size += -size % ALIGNED
    chunks = zip(*(_split(part, size) for part in parts), strict=True)
    return chunks if _one_dtype(parts) else ([piece.to(dtype) for piece in pieces] for pieces in chunks)


def _split(part: Tensor, size: int) -> Sequence[Tensor]:
    return part.split(size) if part.numel() > size else (part,)  # many small parameters would wait for split()


def _one_dtype(parts: Sequence[Tensor]) -> bool:
    return parts[0].dtype not in LOW_PRECISION and all(part.dtype == parts[0].dtype for part in parts)


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
