"""One pass over a base and its checkpoints gives every sum from which an edit is described.

The checkpoints stream past each other a block of rows at a time, several tensors at once. Some twenty plain operations
run over a block while it is in a processor's caches. Memory: some blocks per thread, one compressed matrix per
checkpoint and thread, one number per neuron.

A checkpoint is often stored coarser than its base (bfloat16 and float32). Then the edit is taken from the base *rounded
to the checkpoint's type*, and what rounding still does is taken out of norms and of what compares checkpoints:

* Sizes. With b the base, R(b) the rounded base, d = y - R(b) the edit and r = b - R(b), ``d^2 - 2 d r`` is on average
  the square of the unrounded edit, as the place of b between two neighbours is as good as random. It is never negative,
  and its root with the sign of d takes the edit's place: a weight that lay at the boundary moved by a whole step, and
  nearly any edit would have moved it.
* Products. A small edit moves only weights that lie near the boundary between two neighbours, in every checkpoint the
  same ones and towards the same side. So what an edit does on average to weights at the same distance from the
  boundary, among those of one size in one neighbourhood, is taken off before two edits are compared.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy, NeuronAxis
from counterpoint.checkpoints import Comparison
from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis._edit_spectrum import Compression, EditSpectrum, exact_spectrum, is_exact
from counterpoint.progress import Progress, silent

BLOCK = 1 << 19
"""Weights in a block: two megabytes in float32. Smaller ones stay in the cache, and threads then wait for each other's
Python more than for memory: two threads read half as fast with a quarter of this."""

ABSOLUTE, RELATIVE = 1e-7, 1e-3
"""LPT (arXiv 2606.02398) calls a weight unchanged where ``|edit|`` and ``|edit| / |weight|`` are below these. That both
must hold is our reading. An edit of zero is zero relative to any weight."""

NEIGHBOURHOOD = 512
"""Weights next to each other that count as alike where rounding is taken out of the product of two edits."""

MEGABYTE = 1_000_000
_TINY = torch.finfo(torch.float32).tiny
_SIZES, _DISTANCES = 16, 8


@dataclass
class Sums:
    """What is added up over blocks for one tensor and one checkpoint; counts are of weights."""

    weights: int = 0
    """Finite in both checkpoints."""
    nonfinite_base: int = 0
    nonfinite_after: int = 0
    unchanged: int = 0
    identical: int = 0
    same_in_bfloat16: int = 0
    energy: float = 0.0
    """Sum of squared edits."""
    base_energy: float = 0.0
    largest: float = 0.0
    neurons: Tensor | None = field(default=None, repr=False)
    """Sum of squared edits of each neuron, in the order of the tensor's own axis."""

    def __add__(self, other: "Sums") -> "Sums":
        """The sums of two tensors, without those of neurons."""
        names = (*_COUNTS, "nonfinite_base", "nonfinite_after", "energy", "base_energy")
        added = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Sums(largest=max(self.largest, other.largest), **added)

    def exclude(self, count: int) -> None:
        """Takes ``count`` weights off that were added as zeros before and after, so below every threshold."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) - count)


_COUNTS = ("weights", "unchanged", "identical", "same_in_bfloat16")


@dataclass
class Products:
    """Sums over weights for two edits, from which their cosine follows."""

    dot: float = 0.0
    first_energy: float = 0.0
    second_energy: float = 0.0
    square_dot: float = 0.0
    """Sum of the products' squares: the variance of ``dot`` if every sign were drawn by lot."""

    def __iadd__(self, other: "Products") -> "Products":
        for name in ("dot", "first_energy", "second_energy", "square_dot"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@dataclass
class TensorEdits:
    """Sums of one tensor: per checkpoint, and per pair of checkpoints in the order (0, 1), (0, 2), (1, 2), ..."""

    name: str
    shape: tuple[int, ...]
    sums: list[Sums]
    pairs: list[Products]
    spectra: list[EditSpectrum | None] = field(default_factory=list)
    """None where the edit is zero; empty for tensors that are no matrices."""


class Workspace:
    """Buffers of one thread for blocks of up to ``size`` weights; allocating anew would cost as much as the sums."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._floats = {name: torch.empty(size, dtype=dtype) for name in ("size", "scaled", "squares")}
        self._flags = np.empty(size, dtype=np.bool_), np.empty(size, dtype=np.bool_)

    def floats(self, name: str, like: Tensor) -> Tensor:
        """The buffer ``name`` in the shape of ``like``."""
        return self._floats[name][: like.numel()].view(like.shape)

    def flags(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Two vectors of ``count`` flags."""
        return self._flags[0][:count], self._flags[1][:count]


@dataclass(frozen=True)
class Edit:
    """Some rows of a tensor before and after.

    Attributes:
        base: the weights [M, N] that the edit is taken from, in the type that is computed in, finite.
        edit: after minus base, same shape and type; zero where a weight is excluded.
        stored: the rows before and after in the types they are stored in.
        freed: the edit without what rounding adds to its size; ``edit`` itself where the base was not rounded.
        rounding: what rounding took from the base; None where it was not rounded.
        base_energy, energy: sums of squares of ``base`` and ``freed``.
    """

    base: Tensor
    edit: Tensor
    stored: tuple[Tensor, Tensor]
    freed: Tensor
    rounding: Tensor | None
    base_energy: float
    energy: float


def add_edit(sums: Sums, block: Edit, axis: NeuronAxis | None, start: int, length: int, space: Workspace) -> None:
    """Adds some rows to ``sums``; ``axis`` says where the tensor's ``length`` neurons lie, ``start`` is the first row.

    ``space`` holds buffers at least as large as the block.
    """
    sums.weights += block.edit.numel()
    sums.energy += block.energy
    sums.base_energy += block.base_energy
    if axis is not None:
        if sums.neurons is None:
            sums.neurons = torch.zeros(length, dtype=torch.float64)
        found = _of_neurons(block.freed, axis.dim, space)
        part = sums.neurons[start : start + len(found)] if axis.dim == 0 else sums.neurons
        part += found
    _count(sums, block, space)


def squared(tensor: Tensor) -> float:
    """Sum of squares of a contiguous tensor."""
    flat = tensor.view(-1)
    return float(torch.dot(flat, flat))


def _of_neurons(edit: Tensor, dim: int, space: Workspace) -> Tensor:
    """Sum of squares of each neuron in a block [M, N]; float64."""
    if dim == 0:
        return torch.linalg.vector_norm(edit, dim=1).double().square_()
    return torch.mul(edit, edit, out=space.floats("squares", edit)).sum(0).double()


def _count(sums: Sums, block: Edit, space: Workspace) -> None:
    """numpy compares and counts ten times faster than torch does on one thread."""
    edit = block.edit
    size, scaled = space.floats("size", edit), space.floats("scaled", edit)
    torch.abs(edit, out=size)
    sums.largest = max(sums.largest, float(size.amax()))
    torch.abs(block.base, out=scaled)
    if not float(scaled.amin()):
        scaled.add_(_TINY)  # no edit of a weight of zero is zero relative to it
    torch.div(size, scaled, out=scaled)
    values, relative = size.view(-1).numpy(), scaled.view(-1).numpy()
    flags, more = space.flags(values.size)
    identical = int(np.count_nonzero(np.equal(values, 0, out=flags)))
    sums.identical += identical
    small, little = np.less(values, ABSOLUTE, out=flags), np.less(relative, RELATIVE, out=more)
    sums.unchanged += int(np.count_nonzero(np.logical_and(small, little, out=flags)))
    if all(tensor.dtype == torch.bfloat16 for tensor in block.stored):
        sums.same_in_bfloat16 += identical
    else:
        rounded = [tensor.to(torch.bfloat16).view(torch.int16).view(-1).numpy() for tensor in block.stored]
        sums.same_in_bfloat16 += int(np.count_nonzero(np.equal(rounded[0], rounded[1], out=flags)))


def products(first: Tensor, second: Tensor, space: Workspace) -> Products:
    """The sums of one block of two edits."""
    energies = squared(first), squared(second)
    usual = math.sqrt(energies[0]) * math.sqrt(energies[1]) / first.numel()
    if not usual:
        return Products(0.0, *energies, 0.0)
    product = torch.mul(first, second, out=space.floats("squares", first)).view(-1)
    product.div_(usual)  # the square of the product of two small edits is no float32
    return Products(usual * float(product.sum()), *energies, usual**2 * squared(product))


def is_coarser(after: torch.dtype, base: torch.dtype) -> bool:
    """Whether ``after`` has fewer digits than ``base``."""
    return torch.finfo(after).eps > torch.finfo(base).eps


def without_steps(edit: Tensor, rounding: Tensor) -> Tensor:
    """``sign(d) sqrt(d^2 - 2 d r)`` of an edit from a rounded base; see the top of this file."""
    squares = torch.sub(edit, rounding, alpha=2).mul_(edit).clamp_(min=0)
    return squares.sqrt_().copysign_(edit)


def likenesses(base: Tensor, rounding: Tensor, dtype: torch.dtype) -> Tensor:
    """For each weight [M, N] a number that it shares with those that rounding treats alike [M * N], int64.

    These lie in one neighbourhood, have one power of two, and are equally far from the boundary between two numbers of
    ``dtype``, to within a factor of two.
    """
    kind = torch.finfo(dtype)
    power = torch.frexp(base.abs()).exponent.clamp_(min=math.frexp(kind.tiny)[1])
    step = torch.ldexp(torch.full_like(base, kind.eps), power - 1)
    distance = torch.log2_(1 - 2 * rounding.abs().div_(step)).neg_()
    octave = distance.clamp_(0, _DISTANCES - 1).long().view(-1)
    size = (power.amax() - power).clamp_(max=_SIZES - 1).view(-1)
    return (torch.arange(base.numel()) // NEIGHBOURHOOD * _SIZES + size) * _DISTANCES + octave


def without_rounding(edit: Tensor, rounding: Tensor, alike: Tensor) -> Tensor:
    """The edit without the mean of weights that rounding treats alike, in the direction of their nearer boundary.

    The mean takes the share ``1 / n`` of n weights with it, for which the rest is scaled.
    """
    sign = torch.where(rounding < 0, -1.0, 1.0).view(-1)
    towards = (edit.view(-1) * sign).double()
    count = torch.bincount(alike).double()
    mean = torch.zeros_like(count).index_add_(0, alike, towards) / count
    scale = torch.where(count > 1, count / (count - 1), 0.0).sqrt_()
    return (towards - mean[alike]).mul_(scale[alike]).mul_(sign).to(edit.dtype).view(edit.shape)


@dataclass(frozen=True)
class _Source:
    """What edits are taken from: number ``stored`` of base and checkpoints, rounded to ``dtype`` or as it is."""

    stored: int
    dtype: torch.dtype | None


@dataclass(frozen=True)
class _Blocks:
    start: int
    edits: list[Edit]
    """Of every checkpoint."""
    nonfinite: list[int]
    """In the base and every checkpoint; empty where all weights are finite."""
    excluded: int


class TensorPass:
    """What is done to one tensor by one thread. With ``chain`` each checkpoint is compared with the one before it."""

    def __init__(self, comparisons: Sequence[Comparison], name: str, anatomy: Anatomy, chain: bool) -> None:
        self.comparisons, self.name, self.chain = comparisons, name, chain
        self._read = [(comparisons[0].base, comparisons[0].sources[name][0])]
        self._read += [(comparison.after, comparison.sources[name][1]) for comparison in comparisons]
        self.shape = self._read[0][0].shapes[self._read[0][1]]
        self.rows = self.shape[0] if self.shape else 1
        self.row = math.prod(self.shape[1:])
        self.step = max(1, BLOCK // max(1, self.row))
        types = [checkpoint.dtypes[own] for checkpoint, own in self._read]
        self._sources = [self._source(types, i) for i in range(len(comparisons))]
        dtype = torch.float64 if torch.float64 in types else torch.float32
        size = min(self.step, max(1, self.rows)) * self.row
        self.space = Workspace(size, dtype)
        self._edits = [torch.empty(size, dtype=dtype) for _ in comparisons]
        self._values = {source: torch.empty(size, dtype=dtype) for source in self._sources}
        self._axis = anatomy.neuron_axis(name) if len(self.shape) == 2 else None

    def _source(self, types: list[torch.dtype], which: int) -> _Source:
        before, after = which if self.chain else 0, types[which + 1]
        return _Source(before, after if is_coarser(after, types[before]) else None)

    def run(self, advance: Callable[[int], None]) -> TensorEdits:
        """The tensor's sums; ``advance`` is called with bytes read."""
        pairs = pairs_of(len(self.comparisons))
        sums = [Sums() for _ in self.comparisons]
        result = TensorEdits(self.name, self.shape, sums, [Products() for _ in pairs])
        matrix = len(self.shape) == 2 and min(self.shape) > 1
        exact = matrix and is_exact(self.shape)
        sketches = [Compression(self.shape) for _ in self.comparisons] if matrix and not exact else []  # type: ignore[arg-type]
        kept: list[list[Tensor]] = [[] for _ in self.comparisons]
        for block in self._blocks(advance):
            self._add(result, block)
            for edits, one in zip(kept if exact else (), block.edits, strict=False):
                edits.append(one.freed.clone())
            for sketch, one in zip(sketches, block.edits, strict=False):
                sketch.add(one.freed, block.start)
        if exact:
            result.spectra = [exact_spectrum(torch.cat(edits)) for edits in kept]
        if sketches:
            result.spectra = [z.spectrum(own.energy) for z, own in zip(sketches, result.sums, strict=True)]
        return result

    def _add(self, result: TensorEdits, block: _Blocks) -> None:
        length = self.shape[self._axis.dim] if self._axis else 0
        for i, (sums, one) in enumerate(zip(result.sums, block.edits, strict=True)):
            add_edit(sums, one, self._axis, block.start, length, self.space)
            if block.excluded:
                sums.exclude(block.excluded)
                sums.nonfinite_base += block.nonfinite[self._sources[i].stored]
                sums.nonfinite_after += block.nonfinite[1 + i]
        if len(block.edits) > 1:
            edits = self._comparable(block)
            for sums_of_pair, (i, j) in zip(result.pairs, pairs_of(len(edits)), strict=True):
                sums_of_pair += products(edits[i], edits[j], self.space)

    def _comparable(self, block: _Blocks) -> list[Tensor]:
        """The edits as they are compared with each other: without what the rounding of a common base does to them."""
        alike: dict[_Source, Tensor] = {}
        found = []
        for source, one in zip(self._sources, block.edits, strict=True):
            if one.rounding is None or source.dtype is None or self.chain:
                found.append(one.freed)
                continue
            if source not in alike:
                alike[source] = likenesses(one.base + one.rounding, one.rounding, source.dtype)
            found.append(without_rounding(one.freed, one.rounding, alike[source]))
        return found

    def _blocks(self, advance: Callable[[int], None]) -> Iterator[_Blocks]:
        """The tensor's blocks, in buffers that the next block overwrites."""
        for start in range(0, self.rows, self.step):
            stop = min(start + self.step, self.rows)
            stored = [c.rows(name, start, stop) if self.shape else c.tensor(name) for c, name in self._read]
            yield self._block(start, [tensor.view(stop - start, self.row) for tensor in stored])
            advance(sum(tensor.nbytes for tensor in stored))

    def _block(self, start: int, stored: list[Tensor]) -> _Blocks:
        """Weights that are not finite in any checkpoint are set to zero in all and counted."""
        edits = self._take(stored)
        if math.isfinite(sum(edit.base_energy + edit.energy for edit in edits)):
            return _Blocks(start, edits, [0] * len(stored), 0)
        broken = [~torch.isfinite(tensor) for tensor in stored]
        mask = torch.stack([*broken, *(~torch.isfinite(edit.base) for edit in edits)]).any(0)
        edits = self._take([tensor.masked_fill(mask, 0) for tensor in stored])
        return _Blocks(start, edits, [int(flags.sum()) for flags in broken], int(mask.sum()))

    def _take(self, stored: list[Tensor]) -> list[Edit]:
        count, shape, wide = stored[0].numel(), stored[0].shape, self.space.dtype
        before: dict[_Source, tuple[Tensor, Tensor, float]] = {}
        for source, buffer in self._values.items():
            raw = stored[source.stored]
            rounded = raw if source.dtype is None else raw.to(source.dtype)
            base = buffer[:count].view(shape).copy_(rounded)
            before[source] = rounded, base, squared(base)
        edits = []
        for source, buffer, after in zip(self._sources, self._edits, stored[1:], strict=True):
            rounded, base, energy = before[source]
            edit = buffer[:count].view(shape).copy_(after).sub_(base)
            rounding = None if source.dtype is None else stored[source.stored].to(wide) - base
            freed = edit if rounding is None else without_steps(edit, rounding)
            edits.append(Edit(base, edit, (rounded, after), freed, rounding, energy, squared(freed)))
        return edits


def stream(
    comparisons: Sequence[Comparison],
    anatomy: Anatomy,
    *,
    chain: bool = False,
    threads: int | None = None,
    on_progress: Progress = silent,
) -> list[TensorEdits]:
    """Every floating-point tensor's sums, in model order; progress in megabytes read.

    Large tensors begin first, so that no thread is left alone with one at the end.
    """
    names = comparisons[0].floats
    passes = {name: _cost(comparisons, name) for name in names}
    done, total, lock = 0, sum(passes.values()), threading.Lock()

    def advance(num_bytes: int) -> None:
        nonlocal done
        with lock:
            before, done = done, done + num_bytes
            if done // MEGABYTE > before // MEGABYTE or done == total:
                on_progress("edits, MB", math.ceil(done / MEGABYTE), math.ceil(total / MEGABYTE))

    def work(name: str) -> TensorEdits:
        return TensorPass(comparisons, name, anatomy, chain).run(advance)

    largest_first = sorted(names, key=lambda name: -passes[name])
    found = dict(zip(largest_first, _in_threads(work, largest_first, threads or default_threads()), strict=True))
    return [found[name] for name in names]


def _cost(comparisons: Sequence[Comparison], name: str) -> int:
    base = comparisons[0].base
    size = base.num_bytes(comparisons[0].sources[name][0])
    return size + sum(c.after.num_bytes(c.sources[name][1]) for c in comparisons)


def default_threads() -> int:
    """Processors that this process may use, 16 at most: more would wait for the disk or for memory."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, available)


def _in_threads(work: Callable[[str], TensorEdits], names: Sequence[str], threads: int) -> list[TensorEdits]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a block is too small to be worth waking torch's own threads
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        return list(pool.map(work, names))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
