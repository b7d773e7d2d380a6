"""First and second derivatives of a loss along chosen directions, prompt by prompt, exact to rounding.

The loss is a sum over prompts, and everything here is measured per prompt, so that any number made of these can be
resampled. Curvature comes from a second backward pass through the gradient ("double backward"), never from
differences. A direction is a dict of parameter names to tensors; names that it lacks are zero, so a module's part of
an edit is a selection of its tensors and costs no memory.

Legend: P prompts, R numbers that a reduction returns, N parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from counterpoint.errors import UnsupportedError
from counterpoint.progress import Progress, silent

Direction = Mapping[str, Tensor]
"""One tensor per parameter name, of the parameter's shape; names that are missing are zero."""

Reduction = Callable[[Direction, Direction], Tensor]
"""``(direction, vector) -> [R]`` in float64: what is kept of a gradient or of a product with the Hessian."""


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
class Curvature:
    """What ``along`` measured: sums of each prompt (not yet over units), reduced, by name of the direction.

    ``first[name]`` [P, R] reduces the gradient, ``second[name]`` [P, R] the Hessian times the direction; ``products``
    holds that product of the whole loss (over units) for the names that were to be kept.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]
    products: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def inner(first: Direction, second: Direction) -> Tensor:
    """The inner product of two directions: 0-d, summed in float64."""
    shared = first.keys() & second.keys()
    device = next(iter(first.values())).device if first else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for name in sorted(shared):
        total += torch.dot(first[name].detach().flatten(), second[name].detach().flatten()).double()
    return total


def losses(loss: SumLoss, on_progress: Callable[[int], None] = lambda done: None) -> Tensor:
    """The loss of every prompt, not yet over units: [P] float64."""
    found = torch.zeros(loss.num_prompts, dtype=torch.float64)
    with torch.no_grad():
        for done, piece in enumerate(loss.pieces, 1):
            found[piece.prompt] += piece.loss().double().cpu()
            on_progress(done)
    return found


def check_deterministic(loss: SumLoss, tolerance: float = 1e-6) -> None:
    """Refuses a loss that is not the same twice: all losses, and the gradient of the first piece.

    ``tolerance`` is relative to the largest value; on GPUs the order of sums may differ from call to call.

    Raises:
        UnsupportedError: dropout is on, or something else in the model is random.
    """
    with torch.no_grad():
        once, again = (torch.stack([piece.loss().double() for piece in loss.pieces]) for _ in range(2))
    gradients = [_gradient(loss, loss.pieces[0], graph=False) for _ in range(2)]
    first, second = (torch.cat([g.flatten() for g in found]) for found in gradients)
    # a gradient is a long sum with cancellation: it gets a hundred times the room, far below what dropout changes
    for what, a, b, room in (("loss", once, again, tolerance), ("gradient", first, second, 100 * tolerance)):
        change = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
        if not change <= room:
            raise UnsupportedError(
                f"The surrogate loss is not deterministic: its {what} changed by {change:.1e} of its size between two "
                "calls on the same completions. Curvature of a random function means nothing. Call model.eval(), and "
                "turn off dropout and any other noise in the model."
            )


def along(
    loss: SumLoss,
    directions: Mapping[str, Direction],
    reduce: Reduction = lambda direction, vector: inner(direction, vector).unsqueeze(0),
    *,
    keep: frozenset[str] = frozenset(),
    what: str = "curvature",
    on_progress: Progress = silent,
) -> Curvature:
    """Gradient and Hessian products of every prompt along each direction, reduced at once.

    Each piece's gradient is built once and differentiated along every direction, so n directions cost about 1 + 1.5 n
    times a gradient.

    Args:
        loss: the loss; its ``params`` must require gradients.
        directions: by name.
        reduce: ``inner`` by default, so that ``first`` is ``g.v`` and ``second`` is ``v'Hv``.
        keep: names of the directions whose whole product ``Hv`` is returned too.
        what: said to ``on_progress``.
        on_progress: called with pieces done and in total.
    """
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    products = {name: {key: torch.zeros_like(p) for key, p in loss.params.items()} for name in keep}
    scale = 1 / float(loss.units_P.sum())
    for done, piece in enumerate(loss.pieces, 1):
        gradient = dict(zip(loss.params, _gradient(loss, piece, graph=True), strict=True))
        values = {key: value.detach() for key, value in gradient.items()}
        for name, direction in directions.items():
            product = _product(loss, gradient, direction)
            _add(first, name, piece.prompt, reduce(direction, values), loss.num_prompts)
            _add(second, name, piece.prompt, reduce(direction, product), loss.num_prompts)
            if name in keep:
                for key, value in product.items():
                    products[name][key].add_(value, alpha=scale)
        on_progress(what, done, len(loss.pieces))
    return Curvature(first, second, products)


def hessian_product(loss: SumLoss, direction: Direction) -> dict[str, Tensor]:
    """``H v`` of the whole loss, one tensor per parameter."""
    result = {name: torch.zeros_like(param) for name, param in loss.params.items()}
    scale = 1 / float(loss.units_P.sum())
    for piece in loss.pieces:
        gradient = dict(zip(loss.params, _gradient(loss, piece, graph=True), strict=True))
        for name, value in _product(loss, gradient, direction).items():
            result[name].add_(value, alpha=scale)
    return result


def _gradient(loss: SumLoss, piece: Piece, graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(piece.loss(), list(loss.params.values()), create_graph=graph, materialize_grads=True)


def _product(loss: SumLoss, gradient: Direction, direction: Direction) -> dict[str, Tensor]:
    """The product with the Hessian of one piece, whose gradient keeps its graph."""
    # where the loss is linear in a parameter its gradient is a constant without a graph: no curvature
    curved = [name for name in direction if gradient[name].requires_grad]
    if not curved:
        return {name: torch.zeros_like(param) for name, param in loss.params.items()}
    found = torch.autograd.grad(
        [gradient[name] for name in curved],
        list(loss.params.values()),
        [direction[name] for name in curved],
        retain_graph=True,
        materialize_grads=True,
    )
    return dict(zip(loss.params, found, strict=True))


def _add(table: dict[str, Tensor], name: str, prompt: int, values_R: Tensor, num_prompts: int) -> None:
    row = values_R.detach().double().cpu()
    table.setdefault(name, torch.zeros(num_prompts, len(row), dtype=torch.float64))[prompt] += row


@contextmanager
def displaced(params: Mapping[str, Tensor], edit: Direction, scale: float = 1.0) -> Iterator[None]:
    """Moves ``params`` by ``scale * edit`` in place for a while; afterwards every bit is as before."""
    saved = {name: params[name].detach().clone() for name in edit}
    try:
        with torch.no_grad():
            for name, change in edit.items():
                params[name].add_(change, alpha=scale)
        yield
    finally:
        with torch.no_grad():
            for name, value in saved.items():
                params[name].copy_(value)
