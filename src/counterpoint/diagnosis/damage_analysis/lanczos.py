"""The ends of a symmetric operator's spectrum from products alone, and how much of a quadratic form directions carry.

Source: C. Lanczos (1950), J. Res. Nat. Bur. Standards 45:255. Full reorthogonalisation, done twice, so that no
eigenvalue shows up as a copy of itself; residual bounds from B. N. Parlett, The Symmetric Eigenvalue Problem, 13.2.

Legend: K vectors, N parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs by falling eigenvalue: ``values_K`` float64, ``vectors_KN`` of unit length.

    Within ``residuals_K`` (float64) of each value there is an eigenvalue of the operator.
    """

    values_K: Tensor
    residuals_K: Tensor
    vectors_KN: Tensor


def lanczos(
    product: Callable[[Tensor], Tensor],
    size: int,
    iterations: int,
    *,
    seed: int = 0,
    like: Tensor | None = None,
    on_iteration: Callable[[int], None] = lambda done: None,
) -> RitzPairs:
    """Eigenpairs of the symmetric operator ``product`` [N] -> [N] in a Krylov space of ``iterations`` dimensions.

    The ends of the spectrum converge first. Where the space is exhausted before (few distinct eigenvalues), the work
    goes on from a new random vector, which finds eigenvalues of higher multiplicity; it ends at ``size`` dimensions.

    Args:
        product: the operator.
        size: N.
        iterations: calls of ``product``.
        seed: of the start, a normal vector from a private random stream.
        like: dtype and device of the vectors; float64 on the CPU where None.
        on_iteration: called with the number of products done.
    """
    like = torch.empty(0, dtype=torch.float64) if like is None else like
    generator = torch.Generator().manual_seed(seed)
    count = min(iterations, size)
    basis_KN = torch.zeros(count, size, dtype=like.dtype, device=like.device)
    diagonal, beside = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    basis_KN[0] = _fresh(basis_KN[:0], size, generator)
    for i in range(count):
        image_N = product(basis_KN[i])
        diagonal[i] = torch.dot(basis_KN[i], image_N).double().cpu()
        image_N = _orthogonal(image_N, basis_KN[: i + 1])
        norm = float(image_N.norm())
        exhausted = norm <= 100 * torch.finfo(like.dtype).eps * float((diagonal.abs() + beside).max())
        beside[i] = 0.0 if exhausted else norm
        on_iteration(i + 1)
        if i + 1 < count:
            basis_KN[i + 1] = _fresh(basis_KN[: i + 1], size, generator) if exhausted else image_N / norm
    tridiagonal = torch.diag(diagonal) + torch.diag(beside[:-1], 1) + torch.diag(beside[:-1], -1)
    values_K, small_KK = torch.linalg.eigh(tridiagonal)
    values_K, small_KK = values_K.flip(0), small_KK.flip(1)
    vectors_KN = small_KK.T.to(basis_KN) @ basis_KN
    return RitzPairs(values_K, (beside[-1] * small_KK[-1]).abs(), vectors_KN)


def _fresh(basis_KN: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random unit vector orthogonal to ``basis_KN``."""
    vector_N = _orthogonal(torch.randn(size, generator=generator, dtype=torch.float64).to(basis_KN), basis_KN)
    return vector_N / vector_N.norm()


def _orthogonal(vector_N: Tensor, basis_KN: Tensor) -> Tensor:
    """The part of ``vector_N`` orthogonal to the rows; projected out twice, as once leaves roundings behind."""
    for _ in range(2):
        vector_N = vector_N - basis_KN.T @ (basis_KN @ vector_N)
    return vector_N


def carried(directions_KN: Tensor, edit_N: Tensor, product_N: Tensor) -> Tensor:
    """``1/2 (u.d) (u.Hd)`` of every orthonormal direction u: [K] float64, its part of ``1/2 d'Hd``.

    Over a whole orthonormal basis the parts add up to ``1/2 d'Hd``. An eigen-direction's part is
    ``1/2 lambda (u.d)^2``; a random direction's is ``1/N`` of the whole on average.
    """
    return 0.5 * (directions_KN @ edit_N).double() * (directions_KN @ product_N).double()


def random_directions(
    count: int, blocks: Sequence[int], weights_KM: Tensor | None, generator: torch.Generator, like: Tensor
) -> Tensor:
    """``count`` random orthonormal vectors [K, N], N the sum of ``blocks``, the sizes of the modules.

    Args:
        count: K.
        blocks: sizes of consecutive slices of the vectors.
        weights_KM: norm of each vector in each block; None for the same chance everywhere.
        generator: on the CPU.
        like: dtype and device of the result.
    """
    rows = []
    for k in range(count):
        parts = [torch.randn(size, generator=generator) for size in blocks]
        if weights_KM is not None:
            parts = [part / part.norm() * float(w) for part, w in zip(parts, weights_KM[k], strict=True)]
        rows.append(torch.cat(parts).to(like))
    return torch.linalg.qr(torch.stack(rows, 1)).Q.T
