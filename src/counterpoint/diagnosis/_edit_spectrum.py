"""How many directions an edit spans: effective rank and the share of the strongest directions, against a random matrix.

Small matrices are decomposed exactly. A large matrix D [M, N] is seen once, some rows at a time, and compressed twice:
``Z = S D`` [P, N], where every row is added with a random sign to one of P = 128 buckets, drawn anew for each Z.

* The effective rank is that of Z, mean of both: right for edits of rank well below P; of others it only shows that they
  have many directions.
* The strongest directions are found in one Z and their share of the energy is measured in the other, both ways round.
  What one Z shows of a direction by the luck of its signs, the other does not.

Every number is to be compared with what a Gaussian random matrix of the same shape gives in the same estimate.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKETS = 128
"""P: rows of the compressed matrix, and the largest effective rank that it can show."""
DIRECTIONS = 8
"""K: the strongest directions that are followed."""
EXACT_SIDE = 512
EXACT_WEIGHTS = 1 << 22
"""Matrices up to this side and size are decomposed exactly."""


@dataclass(frozen=True)
class AgainstRandom:
    """A number, and what a Gaussian random edit of the same shapes gives in its place."""

    value: float
    random: float


@dataclass(frozen=True)
class EditSpectrum:
    """What the singular values ``s`` of one edit say.

    Attributes:
        effective_rank: ``exp`` of the entropy of ``s / sum s`` (Roy and Vetterli, 2007).
        top_8: share of ``sum s^2`` in the strongest eight directions.
    """

    effective_rank: float
    top_8: float


def is_exact(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of this shape is decomposed exactly."""
    return min(shape) <= EXACT_SIDE and math.prod(shape) <= EXACT_WEIGHTS


def exact_spectrum(matrix: Tensor) -> EditSpectrum | None:
    """From all singular values of ``matrix`` [M, N]; None for a matrix of zeros."""
    values = torch.linalg.svdvals(matrix).double()
    energy = float(values.square().sum())
    if not energy:
        return None
    strongest = values.square().sort(descending=True).values[:8]
    return EditSpectrum(effective_rank(values), min(1.0, float(strongest.sum()) / energy))


def effective_rank(values: Tensor) -> float:
    """``exp`` of the entropy of singular values [R] divided by their sum, which is not 0."""
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


class Compression:
    """Z of a large matrix, twice, from one pass over its rows.

    Args:
        shape: of the matrix.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self._buckets_M, self._sign_M1 = _draw(shape[0])
        self._z_PN = [torch.zeros(min(BUCKETS, shape[0]), shape[1]) for _ in range(2)]

    def add(self, rows: Tensor, start: int) -> None:
        """Adds the rows from ``start`` on; they are overwritten."""
        rows.mul_(self._sign_M1[start : start + len(rows)])
        for bucket_M, z_PN in zip(self._buckets_M, self._z_PN, strict=True):
            z_PN.index_add_(0, bucket_M[start : start + len(rows)], rows)

    def spectrum(self, energy: float) -> EditSpectrum | None:
        """The spectrum of a matrix with this sum of squares; None where it is 0."""
        if energy <= 0:
            return None
        ranks, shares_K = [], torch.zeros(min(DIRECTIONS, *self._z_PN[0].shape), dtype=torch.float64)
        for here, there in (self._z_PN, self._z_PN[::-1]):
            squares, v_NK = _directions(here)
            ranks.append(effective_rank(squares.sqrt()))
            along_K = torch.linalg.vector_norm(there @ v_NK, dim=0).double().square()
            shares_K += along_K / (2 * there.norm().double().square())
        return EditSpectrum(sum(ranks) / 2, min(1.0, float(shares_K.sum())))


@functools.lru_cache(maxsize=64)
def _draw(rows: int) -> tuple[list[Tensor], Tensor]:
    """Two independent buckets of every row, and its sign: drawn by lot, buckets of equal size, always the same.

    One sign serves both: two rows that fall in one bucket twice are one pair in P squared.
    """
    generator = torch.Generator().manual_seed(rows)
    orders = [torch.randperm(rows, generator=generator) for _ in range(2)]
    signs = torch.randint(0, 2, (rows, 1), generator=generator, dtype=torch.float32) * 2 - 1
    return [order % min(BUCKETS, rows) for order in orders], signs


def _directions(z_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values of Z, and its strongest right directions [N, K], strongest first."""
    squares, vectors_PP = torch.linalg.eigh((z_PN @ z_PN.T).double())
    strongest = vectors_PP[:, -min(DIRECTIONS, *z_PN.shape) :].flip(1).float()
    return squares.clamp(min=0), torch.linalg.qr(z_PN.T @ strongest).Q


@functools.lru_cache(maxsize=256)
def random_spectrum(shape: tuple[int, int]) -> EditSpectrum:
    """What a Gaussian random matrix of this shape shows in the same estimate; its scale does not matter.

    A large one needs no drawing in full. Z is ``sqrt(M / P)`` times P orthonormal combinations of its rows; the energy
    along a direction of Z is what these hold, and 1 for every other row, out of ``M N``.
    """
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    if is_exact(shape):
        found = exact_spectrum(torch.randn(shape, generator=generator))
        assert found is not None
        return found
    squares, v_NK = _directions(torch.randn(min(BUCKETS, rows), columns, generator=generator))
    shares_K = (squares.flip(0)[: v_NK.shape[1]] + rows - len(squares)) / (rows * columns)
    return EditSpectrum(effective_rank(squares.sqrt()), float(shares_K.sum()))


def mean_spectrum(
    spectra: Sequence[tuple[float, tuple[int, int], EditSpectrum]],
) -> tuple[AgainstRandom, AgainstRandom] | tuple[None, None]:
    """Effective rank and top 8 of matrices, each given as energy (sum of squares), shape and spectrum.

    Means weighted by energy; None without any.
    """
    total = sum(energy for energy, _, _ in spectra)
    if not total:
        return None, None

    def mean(of: Callable[[EditSpectrum], float]) -> AgainstRandom:
        value = sum(energy * of(own) for energy, _, own in spectra) / total
        return AgainstRandom(value, sum(energy * of(random_spectrum(shape)) for energy, shape, _ in spectra) / total)

    return mean(lambda own: own.effective_rank), mean(lambda own: own.top_8)
