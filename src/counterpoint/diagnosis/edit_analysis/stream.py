"""Streams a base and any number of checkpoints past each other, a block of rows at a time, several tensors at once.

Memory: some blocks per thread, one compressed matrix per checkpoint and thread, one number per neuron. No model, and
of large tensors not even one, is ever held.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy, NeuronAxis
from counterpoint.checkpoints import Comparison
from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis.edit_analysis.chunks import (
    BLOCK,
    Agreement,
    Block,
    Sums,
    Thresholds,
    Workspace,
    add_block,
    agreement,
    exclude,
    neuron_sums,
    squared,
)
from counterpoint.diagnosis.edit_analysis.spectrum import Compression, Spectrum, exact_spectrum, is_exact

Progress = Callable[[str, int, int], None]
"""``(what, done, total)``."""

MEGABYTE = 1_000_000


@dataclass
class TensorEdits:
    """Sums of one tensor: per checkpoint, and per pair of checkpoints in the order (0, 1), (0, 2), (1, 2), ..."""

    name: str
    shape: tuple[int, ...]
    sums: list[Sums]
    pairs: list[Agreement]
    spectra: list[Spectrum | None] = field(default_factory=list)
    """None where the edit is zero; empty for tensors that are no matrices."""


@dataclass(frozen=True)
class Options:
    """What is asked of a pass.

    Attributes:
        thresholds: of sparsity.
        norm: of a neuron's edit.
        chain: edits are taken from one checkpoint to the next, not from the base.
        anatomy: where the neurons of each tensor lie.
    """

    thresholds: Thresholds
    norm: str = "l2"
    chain: bool = False
    anatomy: Anatomy = field(default_factory=Anatomy)


@dataclass(frozen=True)
class _Blocks:
    start: int
    values: list[Tensor]
    """The base, and in a chain every checkpoint but the last: what edits are taken from."""
    edits: list[Tensor]
    stored: list[Tensor]
    """As on disk: of the base, then of every checkpoint."""
    energies: list[float]
    """Sums of squares of ``values``, then of ``edits``."""
    nonfinite: list[int]
    excluded: int


class TensorPass:
    """What is done to one tensor by one thread."""

    def __init__(self, comparisons: Sequence[Comparison], name: str, options: Options) -> None:
        self.comparisons, self.name, self.options = comparisons, name, options
        base = comparisons[0].base
        self.shape = base.shapes[comparisons[0].sources[name][0]]
        self.rows = self.shape[0] if self.shape else 1
        self.row = math.prod(self.shape[1:])
        self.step = max(1, BLOCK // max(1, self.row))
        types = {base.dtypes[c.sources[name][0]] for c in comparisons}
        types |= {c.after.dtypes[c.sources[name][1]] for c in comparisons}
        dtype = torch.float64 if torch.float64 in types else torch.float32
        size = min(self.step, max(1, self.rows)) * self.row
        self.space = Workspace(size, dtype)
        self._edits = [torch.empty(size, dtype=dtype) for _ in comparisons]
        self._values = [torch.empty(size, dtype=dtype) for _ in (comparisons if options.chain else comparisons[:1])]

    def run(self, advance: Callable[[int], None]) -> TensorEdits:
        """The tensor's sums; ``advance`` is told of bytes read."""
        result = TensorEdits(
            self.name,
            self.shape,
            [self.options.thresholds.empty() for _ in self.comparisons],
            [Agreement() for _ in pairs_of(len(self.comparisons))],
        )
        axis = self.options.anatomy.neuron_axis(self.name) if len(self.shape) == 2 else None
        matrix = len(self.shape) == 2 and min(self.shape) > 1
        exact = matrix and is_exact(self.shape)
        sketches = [Compression(self.shape) for _ in self.comparisons] if matrix and not exact else []  # type: ignore[arg-type]
        kept: list[list[Tensor]] = [[] for _ in self.comparisons]
        for block in self._blocks(advance):
            self._add(result, block, axis)
            for edits, edit in zip(kept if exact else (), block.edits, strict=False):
                edits.append(edit.clone())
            for sketch, edit in zip(sketches, block.edits, strict=False):
                sketch.add(edit, block.start)
        if exact:
            result.spectra = [exact_spectrum(torch.cat(edits)) for edits in kept]
        if sketches:
            result.spectra = [z.spectrum(sums.energy) for z, sums in zip(sketches, result.sums, strict=True)]
        return result

    def _add(self, result: TensorEdits, block: _Blocks, axis: NeuronAxis | None) -> None:
        for i, (sums, edit) in enumerate(zip(result.sums, block.edits, strict=True)):
            source = i if self.options.chain else 0
            stored = block.stored[source], block.stored[1 + i]
            energies = block.energies[source], block.energies[len(block.values) + i]
            one = Block(block.values[source], edit, stored, *energies)
            add_block(sums, one, self.options.thresholds, self.space)
            if block.excluded:
                exclude(sums, block.excluded)
                sums.nonfinite_base += block.nonfinite[source]
                sums.nonfinite_after += block.nonfinite[1 + i]
            if axis is not None:
                self._add_neurons(sums, edit, axis, block.start)
        for sums_of_pair, (i, j) in zip(result.pairs, pairs_of(len(block.edits)), strict=True):
            own = block.energies[len(block.values) + i], block.energies[len(block.values) + j]
            sums_of_pair += agreement(block.edits[i], block.edits[j], own, self.space)

    def _add_neurons(self, sums: Sums, edit: Tensor, axis: NeuronAxis, start: int) -> None:
        found = neuron_sums(edit, axis.dim, self.options.norm, self.space)
        if sums.neurons is None:
            sums.neurons = torch.zeros(self.shape[axis.dim], dtype=torch.float64)
        part = sums.neurons[start : start + len(found)] if axis.dim == 0 else sums.neurons
        if self.options.norm == "max":
            torch.maximum(part, found, out=part)
        else:
            part += found

    def _blocks(self, advance: Callable[[int], None]) -> Iterator[_Blocks]:
        """The tensor's blocks, in buffers that the next block overwrites."""
        sources = [(self.comparisons[0].base, self.comparisons[0].sources[self.name][0])]
        sources += [(comparison.after, comparison.sources[self.name][1]) for comparison in self.comparisons]
        for start in range(0, self.rows, self.step):
            stop = min(start + self.step, self.rows)
            stored = [c.rows(name, start, stop) if self.shape else c.tensor(name) for c, name in sources]
            yield self._block(start, [tensor.view(stop - start, self.row) for tensor in stored])
            advance(sum(tensor.nbytes for tensor in stored))

    def _block(self, start: int, stored: list[Tensor]) -> _Blocks:
        count, shape = stored[0].numel(), stored[0].shape
        values = [own[:count].view(shape).copy_(raw) for own, raw in zip(self._values, stored, strict=False)]
        edits = [own[:count].view(shape).copy_(raw) for own, raw in zip(self._edits, stored[1:], strict=True)]
        for i, edit in enumerate(edits):
            edit.sub_(values[i if self.options.chain else 0])
        energies = [squared(tensor) for tensor in (*values, *edits)]
        if math.isfinite(sum(energies)):
            return _Blocks(start, values, edits, stored, energies, [], 0)
        return self._finite_block(start, values, edits, stored)

    def _finite_block(self, start: int, values: list[Tensor], edits: list[Tensor], stored: list[Tensor]) -> _Blocks:
        """The block with weights that are not finite in any checkpoint set to zero in all, and how many they are."""
        broken = [~torch.isfinite(tensor.to(self.space.dtype)) for tensor in stored]
        mask = torch.stack(broken).any(0)
        for tensor in (*values, *edits):
            tensor.masked_fill_(mask, 0)
        stored = [tensor.to(self.space.dtype).masked_fill(mask, 0) for tensor in stored]
        energies = [squared(tensor) for tensor in (*values, *edits)]
        return _Blocks(start, values, edits, stored, energies, [int(flags.sum()) for flags in broken], int(mask.sum()))


def stream(
    comparisons: Sequence[Comparison],
    options: Options,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> list[TensorEdits]:
    """Every floating-point tensor's sums, in model order; progress in megabytes read.

    Large tensors begin first, so that no thread is left alone with one at the end.
    """
    names = floating_names(comparisons)
    passes = {name: _cost(comparisons, name) for name in names}
    done, total, lock = 0, sum(passes.values()), threading.Lock()

    def advance(num_bytes: int) -> None:
        nonlocal done
        with lock:
            before, done = done, done + num_bytes
            if on_progress is not None and (done // MEGABYTE > before // MEGABYTE or done == total):
                on_progress("edits, MB", math.ceil(done / MEGABYTE), math.ceil(total / MEGABYTE))

    def work(name: str) -> TensorEdits:
        return TensorPass(comparisons, name, options).run(advance)

    largest_first = sorted(names, key=lambda name: -passes[name])
    found = dict(zip(largest_first, _in_threads(work, largest_first, threads or default_threads()), strict=True))
    return [found[name] for name in names]


def floating_names(comparisons: Sequence[Comparison]) -> list[str]:
    """The tensors that hold numbers which training moves; integers (quantized weights, indices) are left out."""
    first = comparisons[0]
    return [name for name in first.names if first.base.dtypes[first.sources[name][0]].is_floating_point]


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
