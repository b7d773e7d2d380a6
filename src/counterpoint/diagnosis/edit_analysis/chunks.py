"""One pass over a block of weights gives every statistic of its edit.

Some twenty plain operations run over a block while it is in a processor's caches, so a pass costs little more than
reading the weights. Pure functions of tensors. Legend: M rows, N columns, of a block.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 19
"""Weights in a block: two megabytes in float32. Smaller ones stay in the cache, and threads then wait for each other's
Python more than for memory: two threads read half as fast with a quarter of this."""

_TINY = torch.finfo(torch.float32).tiny
_EXPONENT = 0x7F800000
_HALF_STEP = 2.0**-8
"""Half a step of bfloat16 in units of the power of two below the weight: seven bits follow the first."""


@dataclass
class Sums:
    """What is added up over blocks for one tensor and one checkpoint; counts are of weights."""

    curve: np.ndarray
    """Per absolute threshold, then per relative threshold: weights below."""
    weights: int = 0
    """Finite in both checkpoints."""
    nonfinite_base: int = 0
    nonfinite_after: int = 0
    both: int = 0
    either: int = 0
    identical: int = 0
    below_half_step: int = 0
    same_in_bfloat16: int = 0
    energy: float = 0.0
    """Sum of squared edits."""
    base_energy: float = 0.0
    largest: float = 0.0
    neurons: Tensor | None = field(default=None, repr=False)

    def __iadd__(self, other: "Sums") -> "Sums":
        """Adds the sums of another tensor; scores of neurons stay where they are."""
        self.curve = self.curve + other.curve
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.largest = max(self.largest, other.largest)
        return self


_ADDED = (
    *("weights", "nonfinite_base", "nonfinite_after", "both", "either", "identical"),
    *("below_half_step", "same_in_bfloat16", "energy", "base_energy"),
)


@dataclass(frozen=True)
class Thresholds:
    """When a weight counts as unchanged, and at which thresholds curves are drawn.

    LPT (arXiv 2606.02398) calls a weight unchanged where ``|edit| < 1e-7`` and ``|edit| / |weight| < 1e-3``. How its
    two conditions are joined is our reading: ``both`` by default, ``either`` the other. An edit of zero is zero
    relative to any weight.
    """

    absolute: float = 1e-7
    relative: float = 1e-3
    reading: str = "both"
    absolute_curve: tuple[float, ...] = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    relative_curve: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

    def empty(self) -> Sums:
        """Sums over no weights."""
        return Sums(np.zeros(len(self.absolute_curve) + len(self.relative_curve), dtype=np.int64))


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


def squared(tensor: Tensor) -> float:
    """Sum of squares of a contiguous tensor."""
    flat = tensor.view(-1)
    return float(torch.dot(flat, flat))


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor before and after.

    Attributes:
        base: the weights [M, N] in the type that is computed in, finite.
        edit: after minus before, same shape and type; zero where a weight is excluded.
        stored: the rows as stored, before and after: what rounding to bfloat16 would leave is seen on these.
        base_energy, energy: sums of squares of ``base`` and ``edit``.
    """

    base: Tensor
    edit: Tensor
    stored: tuple[Tensor, Tensor]
    base_energy: float
    energy: float


def add_block(sums: Sums, block: Block, thresholds: Thresholds, space: Workspace) -> None:
    """Adds one block to ``sums``; weights of zero that are not to count are taken off by ``exclude`` afterwards.

    ``space`` holds buffers at least as large as the block.
    """
    edit = block.edit
    sums.weights += edit.numel()
    sums.energy += block.energy
    sums.base_energy += block.base_energy
    size, scaled = space.floats("size", edit), space.floats("scaled", edit)
    torch.abs(edit, out=size)
    largest = float(size.amax())
    sums.largest = max(sums.largest, largest)
    torch.abs(block.base, out=scaled)
    if not float(scaled.amin()):
        scaled.add_(_TINY)  # no edit of a weight of zero is zero relative to it
    torch.div(size, scaled, out=scaled)
    values = size.view(-1).numpy()
    identical = _count(np.equal(values, 0, out=space.flags(values.size)[0]))
    sums.identical += identical
    _count_below(sums, values, scaled.view(-1).numpy(), identical, largest, thresholds, space)
    _count_rounding(sums, block, size, scaled, identical, space)


def exclude(sums: Sums, count: int) -> None:
    """Takes ``count`` weights off that were added as zeros before and after, so below every threshold."""
    sums.curve -= count
    for name in ("weights", "both", "either", "identical", "below_half_step", "same_in_bfloat16"):
        setattr(sums, name, getattr(sums, name) - count)


def _count(flags: np.ndarray) -> int:
    return int(np.count_nonzero(flags))


def _count_below(
    sums: Sums,
    size: np.ndarray,
    relative: np.ndarray,
    identical: int,
    largest: float,
    thresholds: Thresholds,
    space: Workspace,
) -> None:
    """numpy compares and counts ten times faster than torch does on one thread."""
    flags, more = space.flags(size.size)
    small, little = np.less(size, thresholds.absolute, out=flags), np.less(relative, thresholds.relative, out=more)
    count_small, count_little = _count(small), _count(little)
    both = _count(np.logical_and(small, little, out=flags)) if count_small > identical else identical
    sums.both += both
    sums.either += count_small + count_little - both
    curves = _curve(size, thresholds.absolute_curve, identical, largest, flags)
    sums.curve += np.array(curves + _curve(relative, thresholds.relative_curve, identical, math.inf, flags))


def _curve(
    values: np.ndarray, thresholds: tuple[float, ...], zeros: int, largest: float, flags: np.ndarray
) -> list[int]:
    """Values below each threshold; from the largest down, until only the ``zeros`` are left below."""
    found = dict.fromkeys(thresholds, zeros)
    for threshold in sorted(thresholds, reverse=True):
        below = values.size if largest < threshold else _count(np.less(values, threshold, out=flags))
        found[threshold] = below
        if below == zeros:
            break
    return list(found.values())


def _count_rounding(sums: Sums, block: Block, size: Tensor, buffer: Tensor, identical: int, space: Workspace) -> None:
    flags, _ = space.flags(size.numel())
    half = half_steps(block.base, buffer)
    sums.below_half_step += _count(np.less(size.view(-1).numpy(), half.view(-1).numpy(), out=flags))
    if all(tensor.dtype == torch.bfloat16 for tensor in block.stored):
        sums.same_in_bfloat16 += identical
        return
    rounded = [tensor.to(torch.bfloat16).view(torch.int16).view(-1).numpy() for tensor in block.stored]
    sums.same_in_bfloat16 += _count(np.equal(rounded[0], rounded[1], out=flags))


def half_steps(base: Tensor, out: Tensor | None = None) -> Tensor:
    """Half the distance from each weight to its neighbour in bfloat16, by its exponent; tiny for zero."""
    if base.dtype == torch.float32:
        out = torch.empty_like(base) if out is None else out
        torch.bitwise_and(base.view(torch.int32), _EXPONENT, out=out.view(torch.int32))
        return out.mul_(_HALF_STEP).add_(_TINY)
    return half_steps(base.float()).to(base.dtype)


def neuron_sums(edit: Tensor, dim: int, norm: str, space: Workspace) -> Tensor:
    """Per neuron of a block [M, N] the sum of squares (``l2``), sum of sizes (``l1``) or largest size (``max``).

    ``dim`` is the dimension along which neurons lie; float64.
    """
    if norm == "l2" and dim == 0:
        return torch.linalg.vector_norm(edit, dim=1).double().square_()
    if norm == "l2":
        values = torch.mul(edit, edit, out=space.floats("squares", edit))
        return values.sum(1 - dim).double()
    size = torch.abs(edit, out=space.floats("squares", edit))
    return (size.sum(1 - dim) if norm == "l1" else size.amax(1 - dim)).double()


@dataclass
class Agreement:
    """Sums over weights for two edits, from which their cosine and the agreement of their signs follow."""

    dot: float = 0.0
    first_energy: float = 0.0
    second_energy: float = 0.0
    square_dot: float = 0.0
    """Sum of the products' squares: the variance of ``dot`` if every sign were drawn by lot."""
    same: int = 0
    changed: int = 0
    """Weights that both edits change."""

    def __iadd__(self, other: "Agreement") -> "Agreement":
        for name in ("dot", "first_energy", "second_energy", "square_dot", "same", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def agreement(first: Tensor, second: Tensor, energies: tuple[float, float], space: Workspace) -> Agreement:
    """The sums of one block of two edits, whose sums of squares are known."""
    product = torch.mul(first, second, out=space.floats("squares", first)).view(-1)
    flags, _ = space.flags(product.numel())
    values = product.numpy()
    return Agreement(
        float(product.sum()),
        *energies,
        float(torch.dot(product, product)),
        _count(np.greater(values, 0, out=flags)),
        _count(np.not_equal(values, 0, out=flags)),
    )
