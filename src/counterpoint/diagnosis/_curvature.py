"""First and second derivatives of a loss along chosen vectors, prompt by prompt, and the ends of its spectrum.

The loss is a sum over prompts, and everything here is measured per prompt, so that any number made of these can be
resampled. Curvature comes from a second backward pass through the gradient ("double backward"), exact to rounding,
never from differences. A vector is a mapping of parameter names to tensors; names that it lacks are zero, so a module's
part of an edit is a selection of its tensors and costs no memory.

Legend: P prompts, R numbers that a reduction returns, K vectors, N parameters.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from counterpoint.errors import UnsupportedError
from counterpoint.progress import Progress, silent

Vector = Mapping[str, Tensor]
"""One tensor per parameter name, of the parameter's shape; names that are missing are zero."""

Reduction = Callable[[Vector, Vector], Tensor]
"""``(vector, derivative) -> [R]`` in float64: what is kept of a gradient or of a product with the Hessian."""


@dataclass(frozen=True)
class Piece:
    """A part of the loss that fits in memory at once: completions of one prompt. ``loss()`` is a 0-d sum."""

    prompt: int
    loss: Callable[[], Tensor]


@dataclass(frozen=True)
class SumLoss:
    """``L(params) = sum over pieces / sum(units_P)``, a deterministic function of ``params``.

    ``params`` are the tensors that the pieces read; ``units_P`` [P] is what each prompt counts for, its tokens.
    """

    params: dict[str, Tensor]
    pieces: tuple[Piece, ...]
    units_P: Tensor

    @property
    def num_prompts(self) -> int:
        """Prompts, with those that no piece belongs to."""
        return len(self.units_P)

    def half(self, rank: int) -> "SumLoss":
        """Every other prompt that has a piece, from ``rank`` 0 or 1: two halves that share no prompt."""
        chosen = set(sorted({piece.prompt for piece in self.pieces})[rank::2])
        counted_P = torch.tensor([prompt in chosen for prompt in range(self.num_prompts)])
        pieces = tuple(piece for piece in self.pieces if piece.prompt in chosen)
        return replace(self, pieces=pieces, units_P=self.units_P * counted_P)


@dataclass(frozen=True)
class Derivatives:
    """Sums of each prompt, not yet over units, by name of the vector: ``first`` [P, R] reduces the gradient, ``second``
    [P, R] the Hessian times the vector.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]


def inner(first: Vector, second: Vector) -> Tensor:
    """The inner product of two vectors: 0-d, summed in float64."""
    dots = (torch.dot(first[n].detach().flatten(), second[n].detach().flatten()) for n in sorted(first.keys() & second))
    return sum((dot.double() for dot in dots), torch.zeros((), dtype=torch.float64))


def losses(loss: SumLoss, on_progress: Callable[[int], None] = lambda done: None) -> Tensor:
    """The loss of every prompt, not yet over units: [P] float64."""
    found = torch.zeros(loss.num_prompts, dtype=torch.float64)
    with torch.no_grad():
        for done, piece in enumerate(loss.pieces, 1):
            found[piece.prompt] += piece.loss().double().cpu()
            on_progress(done)
    return found


def check_deterministic(loss: SumLoss) -> None:
    """Refuses a loss that is not the same twice: all losses, and the gradient of the first piece.

    Changes below 1e-6 of the largest value pass: on GPUs the order of sums may differ from call to call.

    Raises:
        UnsupportedError: dropout is on, or something else in the model is random.
    """
    with torch.no_grad():
        once, again = (torch.stack([piece.loss().double() for piece in loss.pieces]) for _ in range(2))
    gradients = [_gradient(loss, loss.pieces[0], graph=False) for _ in range(2)]
    # a gradient is a long sum with cancellation: it gets a hundred times the room, far below what dropout changes
    checks = (("loss", [(once, again)], 1e-6), ("gradient", list(zip(*gradients, strict=True)), 1e-4))
    for what, pairs, room in checks:
        largest = max(float(first.abs().max()) for first, _ in pairs)
        change = max(float((first - second).abs().max()) for first, second in pairs) / max(largest, 1e-30)
        if not change <= room:
            raise UnsupportedError(
                f"The surrogate loss is not deterministic: its {what} changed by {change:.1e} of its size between two "
                "calls on the same completions. Curvature of a random function means nothing. Call model.eval(), and "
                "turn off dropout and any other noise in the model."
            )


def along(
    loss: SumLoss,
    vectors: Mapping[str, Vector],
    reduce: Reduction = lambda vector, derivative: inner(vector, derivative).unsqueeze(0),
    *,
    what: str = "curvature",
    on_progress: Progress = silent,
) -> Derivatives:
    """Gradient and Hessian products of every prompt along each vector, reduced at once.

    Each piece's gradient is built once and differentiated along every vector, so n vectors cost about 1 + 1.5 n times
    a gradient. With ``inner``, the default, ``first`` is ``g.v`` and ``second`` is ``v'Hv``.
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    for done, piece in enumerate(loss.pieces, 1):
        gradient = dict(zip(loss.params, _gradient(loss, piece, graph=True), strict=True))
        values = {key: value.detach() for key, value in gradient.items()}
        for name, vector in vectors.items():
            product = _product(loss, gradient, vector)
            _add(first, name, piece.prompt, reduce(vector, values), loss.num_prompts)
            _add(second, name, piece.prompt, reduce(vector, product), loss.num_prompts)
        on_progress(what, done, len(loss.pieces))
    return Derivatives(first, second)


def hessian_product(loss: SumLoss, vector: Vector) -> dict[str, Tensor]:
    """``H v`` of the whole loss, one tensor per parameter."""
    result = {name: torch.zeros_like(param) for name, param in loss.params.items()}
    scale = 1 / float(loss.units_P.sum())
    for piece in loss.pieces:
        gradient = dict(zip(loss.params, _gradient(loss, piece, graph=True), strict=True))
        for name, value in _product(loss, gradient, vector).items():
            result[name].add_(value, alpha=scale)
    return result


def _gradient(loss: SumLoss, piece: Piece, graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(piece.loss(), list(loss.params.values()), create_graph=graph, materialize_grads=True)


def _product(loss: SumLoss, gradient: Vector, vector: Vector) -> dict[str, Tensor]:
    """The product with the Hessian of one piece, whose gradient keeps its graph."""
    # where the loss is linear in a parameter its gradient is a constant without a graph: no curvature
    curved = [name for name in vector if gradient[name].requires_grad]
    if not curved:
        return {name: torch.zeros_like(param) for name, param in loss.params.items()}
    found = torch.autograd.grad(
        [gradient[name] for name in curved],
        list(loss.params.values()),
        [vector[name] for name in curved],
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(loss.params, found, strict=True))


def _add(table: dict[str, Tensor], name: str, prompt: int, values_R: Tensor, num_prompts: int) -> None:
    row = values_R.detach().double().cpu()
    table.setdefault(name, torch.zeros(num_prompts, len(row), dtype=torch.float64))[prompt] += row


@contextmanager
def displaced(
    params: Mapping[str, Tensor], edit: Vector | Iterable[tuple[str, Tensor]], scale: float = 1.0
) -> Iterator[None]:
    """Moves ``params`` by ``scale * edit`` in place for a while; afterwards every bit is as before.

    An edit that is given as pairs of name and tensor is read one tensor after the other, so it need not be in memory.
    """
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, change in edit.items() if isinstance(edit, Mapping) else edit:
                saved[name] = params[name].detach().clone()
                params[name].add_(change, alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                params[name].copy_(value)


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs by falling eigenvalue: ``values_K`` float64, ``vectors_KN`` of unit length.

    Within ``residuals_K`` (float64) of each value there is an eigenvalue of the operator. The vectors are mapped from a
    temporary file.
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

    The ends of the spectrum converge first. Where the space is exhausted before, the work goes on from a new random
    vector, which finds eigenvalues of higher multiplicity. Full reorthogonalisation, done twice, so that no eigenvalue
    shows up as a copy of itself. Memory holds two vectors of the dtype and device of ``like``; twice ``iterations`` are
    in the folder for temporary files.

    Sources: C. Lanczos (1950), J. Res. Nat. Bur. Standards 45:255; residual bounds from B. N. Parlett, The Symmetric
    Eigenvalue Problem, 13.2.
    """
    like = torch.empty(0, dtype=torch.float64) if like is None else like
    generator = torch.Generator().manual_seed(seed)
    count = min(iterations, size)
    basis_KN = _on_disk(count, size, like.dtype)
    diagonal, beside = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    basis_KN[0] = _fresh(basis_KN[:0], size, generator)
    for i in range(count):
        vector_N = basis_KN[i].to(like.device)
        image_N = product(vector_N)
        diagonal[i] = torch.dot(vector_N, image_N).double().cpu()
        del vector_N
        _remove(image_N, basis_KN[: i + 1])
        norm = float(image_N.norm())
        exhausted = norm <= 100 * torch.finfo(like.dtype).eps * float((diagonal.abs() + beside).max())
        beside[i] = 0.0 if exhausted else norm
        on_iteration(i + 1)
        if i + 1 < count:
            basis_KN[i + 1] = _fresh(basis_KN[: i + 1], size, generator) if exhausted else image_N.div_(norm).cpu()
    tridiagonal = torch.diag(diagonal) + torch.diag(beside[:-1], 1) + torch.diag(beside[:-1], -1)
    values_K, small_KK = torch.linalg.eigh(tridiagonal)
    values_K, small_KK = values_K.flip(0), small_KK.flip(1)
    vectors_KN = _on_disk(count, size, like.dtype)
    for vector_N, weights_K in zip(vectors_KN, small_KK.T.tolist(), strict=True):
        for weight, row_N in zip(weights_K, basis_KN, strict=True):
            vector_N.add_(row_N, alpha=weight)
    return RitzPairs(values_K, (beside[-1] * small_KK[-1]).abs(), vectors_KN)


def _on_disk(rows: int, size: int, dtype: torch.dtype) -> Tensor:
    """Zeros [rows, size] in a file without a name, which is gone when nothing uses the tensor any more."""
    with tempfile.TemporaryDirectory() as folder:
        found: Tensor = torch.from_file(f"{folder}/vectors", shared=True, size=rows * size, dtype=dtype)
        return found.view(rows, size)


def _fresh(basis_KN: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random unit vector orthogonal to ``basis_KN``."""
    vector_N = torch.randn(size, generator=generator, dtype=torch.float64).to(basis_KN)
    _remove(vector_N, basis_KN)
    return vector_N.div_(vector_N.norm())


def _remove(vector_N: Tensor, basis_KN: Tensor) -> None:
    """Makes a vector orthogonal to the rows, in place; done twice, as once leaves roundings behind."""
    for row_N in (*basis_KN, *basis_KN):
        row_N = row_N.to(vector_N.device)
        vector_N.sub_(row_N, alpha=float(row_N @ vector_N))
