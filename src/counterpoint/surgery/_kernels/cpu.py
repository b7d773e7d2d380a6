"""Both passes on processors, in chunks that stay in a cache.

Memory feeds a core some 10 GB/s, its own cache ten times that. So a chunk of every vector is read once from memory and
then used from the cache: for the inner products by one dot product per pair, or, where there are many pairs, by copying
the chunks into the rows of a small matrix and multiplying it with its transpose; for the sums by adding vector after
vector to the target's chunk. Threads take turns in Python, so the sums of many chunks are one call: on a processor
``torch._foreach_*`` goes through its lists in order.
"""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from .spans import LOW_PRECISION, Blocks, Span, cut, present, same_memory, work_dtype
from .threads import in_threads

JOB = 1 << 22
"""Elements of every vector that a thread works through before it looks for more: waking one for less costs more."""

DOT_BYTES = 1 << 20
"""Bytes of a vector's chunk where pairs are multiplied one by one: the latest stays in a core's own cache, the others
in the one behind. With shorter chunks threads wait for each other's calls longer than that cache takes; with longer
ones sums of squares in float32 are off by more than 3e-6."""

MATRIX_BYTES = 3 << 20
"""Bytes of the chunks of all vectors together where they are copied into a matrix: shorter rows cost more calls than
the outer cache costs time."""

MAX_DOTS = 8
"""Vectors up to which pairs are multiplied one by one; with more, the many short calls cost more than the copies."""

STRETCH = 1 << 11
"""Elements whose products a matrix product adds up in float32."""

ALIGNED = 16
"""Elements after which a chunk may begin."""

ROW_GAP = 16
"""Elements left free behind a row of the matrix: rows a power of two apart would share few places of the cache. A row's
length is a multiple of it as well, so that every row begins where vector registers can be loaded at once."""

ROWS = 16
"""Matrix products of so many rows, or a multiple, take less time than those of a few rows fewer ..."""

MAX_EMPTY_ROWS = 5
"""... if this many rows at most are zeros."""

SUM_BYTES = 1 << 19
"""Bytes of a target's chunk, which stays in the cache while vector after vector is added to it."""


class _Products:
    """Products of chunks with the same vectors and dtype; nothing else is called while a chunk is in the cache."""

    def __init__(self, num_vectors: int, dots: bool) -> None:
        self._num_vectors = num_vectors
        self._pairs = _pairs(num_vectors) if dots else []
        self._units: list[int] = []
        self._found: list[Tensor] = []

    def add(self, unit: int, parts: list[Tensor]) -> None:
        """Multiplies all pairs of the parts, chunk by chunk."""
        before = len(self._found)
        if self._pairs:
            for chunk in _chunks(parts):
                self._found += map(torch.dot, [chunk[i] for i, _ in self._pairs], [chunk[j] for _, j in self._pairs])
        else:
            self._found += map(_matrix_product, _matrices(parts, _rows(len(parts))))
        self._units += [unit] * ((len(self._found) - before) // max(len(self._pairs), 1))

    def stacked(self) -> tuple[list[int], Tensor]:
        """The chunks' units, and their products: one by one for pairs, or a matrix for every chunk."""
        return self._units, torch.stack(self._found)


Key = tuple[tuple[int, ...], torch.dtype]
"""Numbers of the vectors that a block has, and the dtype of their products."""


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64; every span has elements and vectors."""
    present_B = present(blocks_VB)
    dots_only = len(blocks_VB) <= MAX_DOTS or not _matrix_product_is_exact()

    def multiply(job: list[Span]) -> dict[Key, tuple[list[int], Tensor]]:
        found: dict[Key, _Products] = {}
        for span in job:
            numbers, blocks = present_B[span.block]
            key = tuple(numbers), work_dtype(blocks)
            if key not in found:
                found[key] = _Products(len(numbers), dots_only or len(numbers) <= MAX_DOTS)
            found[key].add(span.unit, [block[span.low : span.high] for block in blocks])
        return {key: products.stacked() for key, products in found.items()}

    tables = in_threads(multiply, _jobs(spans))
    gram_UVV = torch.zeros(num_units, len(blocks_VB), len(blocks_VB), dtype=torch.float64)
    for key in dict.fromkeys(key for table in tables for key in table):
        units, products = zip(*(table[key] for table in tables if key in table), strict=True)
        _add_up(key[0], torch.tensor(list(chain(*units))), torch.cat(products), gram_UVV)
    return gram_UVV


def _add_up(numbers: Sequence[int], units_C: Tensor, products: Tensor, gram_UVV: Tensor) -> None:
    """Adds the chunks' products, of the vectors of these numbers, to their units' matrices, in order."""
    first_P, second_P = torch.tensor(_pairs(len(numbers))).T
    products_CP = products.view(len(units_C), -1) if products.dim() == 1 else products[:, first_P, second_P]
    products_UP = torch.zeros(len(gram_UVV), len(first_P), dtype=torch.float64)
    products_UP.index_add_(0, units_C, products_CP.double())
    to_V, apart_P = torch.tensor(numbers), first_P != second_P
    gram_UVV[:, to_V[first_P], to_V[second_P]] += products_UP
    gram_UVV[:, to_V[second_P[apart_P]], to_V[first_P[apart_P]]] += products_UP[:, apart_P]


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
        if added and not terms:
            return
        weights = [weight for _, weight in terms]
        size = SUM_BYTES // target.element_size()
        for into, *pieces in zip(*(_split(part, size) for part in (target, *(part for part, _ in terms))), strict=True):
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


def _pairs(num_vectors: int) -> list[tuple[int, int]]:
    """All pairs: a vector meets itself when it comes from memory, and then the others, which lie in the cache."""
    return [(i, j) for j in range(num_vectors) for i in range(j, -1, -1)]


def _chunks(parts: list[Tensor]) -> Iterator[Sequence[Tensor] | Tensor]:
    """The parts in chunks that stay in the cache, of one precise dtype; a chunk is valid until the next one."""
    if not _one_dtype(parts):
        return _matrices(parts, len(parts))
    size = _even(parts[0].numel(), DOT_BYTES // parts[0].element_size())
    return zip(*(_split(part, size) for part in parts), strict=True)


def _split(part: Tensor, size: int) -> Sequence[Tensor]:
    """``part.split(size)``, which many small parameters would wait for."""
    return part.split(size) if part.numel() > size else (part,)


def _even(whole: int, longest: int) -> int:
    """The size of about equal chunks, none much longer, that begin where vector registers can be loaded at once."""
    size = -(-whole // -(-whole // longest))
    return size + -size % ALIGNED


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
