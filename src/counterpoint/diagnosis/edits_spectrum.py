"""How many directions an edit spans: effective rank and the share of the strongest directions, beside a random matrix.

Small matrices are decomposed exactly. A large matrix D [M, N] is seen twice, some rows at a time:

1. ``Z = S D`` [P, N]: every row is added with a random sign to one of P = 128 random buckets. The effective rank is
   that of Z, so it is right for edits of rank well below P and tells of others only that they have many directions.
2. ``B = D V`` [M, K], V the K = 24 strongest right directions of Z: its singular values are the strongest of D, from
   below (a randomized range finder; Halko, Martinsson and Tropp, 2011).

A Gaussian random matrix of the same shape goes through the same estimate, so the two compare fairly.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKETS = 128
"""P: rows of the compressed matrix, and the largest effective rank that it can show."""
DIRECTIONS = 24
"""K: directions followed to tell the strongest eight."""
EXACT_SIDE = 512
EXACT_WEIGHTS = 1 << 22
"""Matrices up to this side and size are decomposed exactly."""


@dataclass(frozen=True)
class Spectrum:
    """What the singular values ``s`` of one edit say.

    Attributes:
        effective_rank: ``exp`` of the entropy of ``s / sum s`` (Roy and Vetterli, 2007).
        top_1, top_8: share of ``sum s^2`` in the strongest direction, in the strongest eight.
    """

    effective_rank: float
    top_1: float
    top_8: float


def is_exact(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of this shape is decomposed exactly."""
    return min(shape) <= EXACT_SIDE and math.prod(shape) <= EXACT_WEIGHTS


def exact_spectrum(matrix: Tensor) -> Spectrum | None:
    """From all singular values of ``matrix`` [M, N]; None for a matrix of zeros."""
    values = torch.linalg.svdvals(matrix).double()
    energy = float(values.square().sum())
    return Spectrum(effective_rank(values), *_shares(values, energy)) if energy else None


def effective_rank(values: Tensor) -> float:
    """``exp`` of the entropy of singular values [R] divided by their sum, which is not 0."""
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _shares(values: Tensor, energy: float) -> tuple[float, float]:
    squares = values.square().sort(descending=True).values
    return float(squares[0]) / energy, min(1.0, float(squares[:8].sum()) / energy)


class Compression:
    """The first pass over a large matrix: rows are added up in buckets.

    Args:
        shape: of the matrix.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._bucket_M, self._sign_M1 = _buckets(shape[0])
        self.z_PN = torch.zeros(min(BUCKETS, shape[0]), shape[1])

    def add(self, rows: Tensor, start: int) -> None:
        """Adds the rows from ``start`` on; they are overwritten."""
        stop = start + len(rows)
        self.z_PN.index_add_(0, self._bucket_M[start:stop], rows.mul_(self._sign_M1[start:stop]))

    def directions(self) -> tuple[float, Tensor]:
        """The effective rank of Z, and V [N, K]. Z must not be zero."""
        return _rank_and_directions(self.z_PN)


@functools.lru_cache(maxsize=64)
def _buckets(rows: int) -> tuple[Tensor, Tensor]:
    """The bucket and the sign of every row: buckets of equal size, drawn by lot, always the same."""
    generator = torch.Generator().manual_seed(rows)
    order = torch.randperm(rows, generator=generator)
    signs = torch.randint(0, 2, (rows, 1), generator=generator, dtype=torch.float32) * 2 - 1
    return order % min(BUCKETS, rows), signs


def _rank_and_directions(z_PN: Tensor) -> tuple[float, Tensor]:
    squares, vectors_PP = torch.linalg.eigh((z_PN @ z_PN.T).double())
    values = squares.clamp(min=0).sqrt()
    strongest = vectors_PP[:, -min(DIRECTIONS, z_PN.shape[1]) :].float()
    return effective_rank(values), torch.linalg.qr(z_PN.T @ strongest).Q.contiguous()


def strongest(gram_KK: Tensor, rank: float, energy: float) -> Spectrum:
    """The spectrum from ``B' B`` [K, K] in float64, the effective rank of Z and the energy ``sum s^2`` of D."""
    values = torch.linalg.eigvalsh(gram_KK).clamp(min=0).sqrt()
    return Spectrum(rank, *_shares(values, energy))


@functools.lru_cache(maxsize=256)
def random_spectrum(shape: tuple[int, int]) -> Spectrum:
    """What a Gaussian random matrix of this shape shows in the same estimate; its scale does not matter.

    A large one needs no drawing in full: S has orthogonal rows, so Z and what D holds beside it are independent, and
    the latter's product with V is normal again.
    """
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    if is_exact(shape):
        found = exact_spectrum(torch.randn(shape, generator=generator))
        assert found is not None
        return found
    z_PN = torch.randn(min(BUCKETS, rows), columns, generator=generator)
    rank, v_NK = _rank_and_directions(z_PN)
    b_MK = torch.cat((z_PN @ v_NK, torch.randn(rows - len(z_PN), v_NK.shape[1], generator=generator)))
    return strongest((b_MK.T @ b_MK).double(), rank, float(rows) * columns)
