"""Both passes on processors, in chunks that stay in a core's cache.

Memory feeds a core some 10 GB/s, its own cache ten times that. So a chunk of every vector is read once from memory and
then used from the cache: for the inner products by one dot product per pair, or, where there are many pairs, by copying
the chunks into the rows of a small matrix and multiplying it with its transpose; for the sums by adding vector after
vector to the target's chunk. Threads take turns in Python, so the sums of many chunks are one call: on a processor
``torch._foreach_*`` goes through its lists in order.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ._spans import LOW_PRECISION, Blocks, Span, cut, present, same_memory, sum_units, work_dtype
from ._threads import in_threads

JOB = 1 << 21
"""Elements of every vector that a thread works through before it looks for more."""

DOT_BYTES = 3 << 19
"""Bytes of the chunks of all vectors together where pairs are multiplied one by one: most of a core's cache."""

MATRIX_BYTES = 1 << 21
"""The same where they are copied into a matrix: shorter rows cost more calls than the outer cache costs time."""

MAX_DOTS = 6
"""Vectors up to which pairs are multiplied one by one; with more, the many short calls cost more than the copies."""

STRETCH = 1 << 11
"""Elements whose products a matrix product adds up in float32."""

ROW_GAP = 16
"""Elements left free behind a row of the matrix: rows a power of two apart would share few places of the cache. A row's
length is a multiple of it as well, so that every row begins where vector registers can be loaded at once."""

ROWS = 16
"""Matrix products of so many rows, or a multiple, take less time than those of a few rows fewer ..."""

MAX_EMPTY_ROWS = 5
"""... if this many rows at most are zeros."""

SUM_BYTES = 1 << 19
"""Bytes of a target's chunk, which stays in the cache while vector after vector is added to it."""


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64; every span has elements and vectors."""
    present_B = present(blocks_VB)
    dots_only = not _matrix_product_is_exact()
    jobs = _jobs(spans)

    def grams(job: list[Span]) -> Tensor:
        found_SVV = torch.zeros(len(job), len(blocks_VB), len(blocks_VB), dtype=torch.float64)
        for gram_VV, span in zip(found_SVV, job, strict=True):
            numbers, blocks = present_B[span.block]
            product = _gram([block[span.low : span.high] for block in blocks], dots_only)
            if len(numbers) == len(blocks_VB):
                gram_VV.copy_(product)
            else:
                gram_VV[torch.tensor(numbers)[:, None], numbers] = product
        return found_SVV

    units_S = torch.tensor([span.unit for job in jobs for span in job], dtype=torch.int64)
    none = torch.zeros(0, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    return sum_units(units_S, torch.cat([none, *in_threads(grams, jobs)]), num_units)


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    present_B = present(blocks_VB)
    rows_U = weights_UV.tolist()

    def combine(job: list[Span]) -> None:
        calls = _Calls()
        for span in job:
            numbers, blocks = present_B[span.block]
            target = targets_B[span.block]
            assert target is not None
            weights = [rows_U[span.unit][v] for v in numbers]
            # The target itself comes first: it is overwritten.
            terms = sorted(zip(blocks, weights, strict=True), key=lambda term: not same_memory(term[0], target))
            parts = [(block[span.low : span.high], weight) for block, weight in terms]
            if same_memory(terms[0][0], target) and _one_dtype(blocks):
                calls.add(parts)
            else:
                _sum_into(target[span.low : span.high], parts)
        calls.run()

    in_threads(combine, _jobs(spans))


class _Calls:
    """Sums of one precise dtype into the first term's memory, gathered into one call per dtype."""

    def __init__(self) -> None:
        self._lists: dict[torch.dtype, tuple[list[Tensor], list[Tensor], list[float]]] = {}

    def add(self, parts: Sequence[tuple[Tensor, float]]) -> None:
        """Plans ``first = sum of weight * part``, chunk by chunk."""
        (target, own_weight), *others = parts
        # The target's own weight w is applied by adding (w - 1) times itself, where that is as exact as multiplying.
        added = 0.5 <= own_weight <= 2.0
        terms = [(target, own_weight - 1.0), *others] if added and own_weight != 1.0 else others
        weights = [weight for _, weight in terms]
        size = SUM_BYTES // target.element_size()
        for into, *pieces in zip(target.split(size), *(part.split(size) for part, _ in terms), strict=True):
            if not added:
                into.mul_(own_weight)
            targets, addends, factors = self._lists.setdefault(into.dtype, ([], [], []))
            targets += [into] * len(pieces)
            addends += pieces
            factors += weights
            if not added:
                self.run()  # while the chunk is in the cache

    def run(self) -> None:
        """Does what was planned, in order."""
        for dtype, (targets, addends, factors) in self._lists.items():
            if targets:
                torch._foreach_addcmul_(targets, addends, [torch.ones(1, dtype=dtype)] * len(targets), factors)
        self._lists.clear()


def _sum_into(target: Tensor, parts: Sequence[tuple[Tensor, float]]) -> None:
    """The sum of parts of any dtypes, through a chunk of scratch memory."""
    dtype = work_dtype([part for part, _ in parts])
    size = SUM_BYTES // dtype.itemsize
    for into, *pieces in zip(target.split(size), *(part.split(size) for part, _ in parts), strict=True):
        total = pieces[0].to(dtype, copy=True)
        if parts[0][1] != 1:
            total.mul_(parts[0][1])
        for piece, (_, weight) in zip(pieces[1:], parts[1:], strict=True):
            total.add_(piece, alpha=weight)
        into.copy_(total)


def _gram(parts: list[Tensor], dots_only: bool) -> Tensor:
    """Inner products [v, v] of the parts, float64."""
    as_dots = dots_only or len(parts) <= MAX_DOTS
    if as_dots and _one_dtype(parts):
        size = DOT_BYTES // (len(parts) * parts[0].element_size())
        grams = [_dots(pieces) for pieces in zip(*(part.split(size) for part in parts), strict=True)]
    else:
        rows = len(parts) if as_dots else _rows(len(parts))
        grams = [_dots(matrix) if as_dots else _matrix_product(matrix) for matrix in _matrices(parts, rows)]
    upper = torch.stack(grams).sum(0, dtype=torch.float64)[: len(parts), : len(parts)].triu()
    return upper + upper.triu(1).mT


def _rows(num_vectors: int) -> int:
    """Rows of the matrix for so many vectors."""
    empty = -num_vectors % ROWS
    return num_vectors + empty if empty <= MAX_EMPTY_ROWS else num_vectors


def _matrices(parts: list[Tensor], rows: int) -> Iterator[Tensor]:
    """Chunks of the parts, in one precise dtype, as the first of a matrix's rows; the others are zero.

    Its memory is used again for the next chunk.
    """
    dtype = work_dtype(parts)
    whole = MATRIX_BYTES // (len(parts) * dtype.itemsize * STRETCH) * STRETCH
    size = min(max(whole, STRETCH), parts[0].numel())
    scratch = torch.empty(rows, size + -size % ROW_GAP + ROW_GAP, dtype=dtype)
    scratch[len(parts) :].zero_()
    for pieces in zip(*(part.split(size) for part in parts), strict=True):
        matrix = scratch[:, : pieces[0].numel()]
        torch._foreach_copy_(matrix[: len(parts)].unbind(), pieces)
        yield matrix


def _dots(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """Inner products [v, v] of the rows, the upper triangle alone."""
    num = len(rows)
    zero = rows[0].new_zeros(())
    return torch.stack([torch.dot(rows[i], rows[j]) if i <= j else zero for i in range(num) for j in range(num)]).view(
        num, num
    )


def _matrix_product(matrix: Tensor) -> Tensor:
    """Inner products [v, v] of the rows, added up in float64 over short stretches of them."""
    size = matrix.shape[1]
    whole = size - size % STRETCH
    stretches = matrix[:, :whole].unflatten(1, (-1, STRETCH)).transpose(0, 1)
    product = torch.bmm(stretches, stretches.mT).sum(0, dtype=torch.float64)
    rest = matrix[:, whole:]
    return product + rest @ rest.T if whole < size else product


def _one_dtype(blocks: Sequence[Tensor]) -> bool:
    return blocks[0].dtype not in LOW_PRECISION and all(block.dtype == blocks[0].dtype for block in blocks)


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


def _matrix_product_is_exact() -> bool:
    """Whether float32 matrix products keep all bits; torch can be set to round their factors to fewer."""
    probe = torch.zeros(MAX_DOTS + 1, STRETCH + 1)
    probe[:, [0, -1]] = 1 + 2**-22
    return bool((_matrix_product(probe) == 2 + 2**-20).all())
