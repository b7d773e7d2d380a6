"""Which parts of an edit carry its damage, and how far second order predicts it.

Modules, the neurons that two domains share, the strongest eigen-directions, and multiples of the edit. Every
decomposition adds up to the whole: by rows ``1/2 d_m'(Hd)`` over modules m, and over a set S of weights and its
complement C as ``1/2 d_S'Hd_S + d_S'Hd_C + 1/2 d_C'Hd_C``.

Legend: P prompts, M modules, K eigen-directions, N parameters.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis._chance import bootstrap
from counterpoint.diagnosis._curvature import (
    Derivatives,
    Reduction,
    RitzPairs,
    SumLoss,
    Vector,
    along,
    displaced,
    hessian_product,
    inner,
    lanczos,
    losses,
)
from counterpoint.progress import Progress, silent
from counterpoint.stats import Estimate

Modules = dict[str, tuple[str, ...]]
"""The parameters of every module, in model order."""


def per_unit(values_P: Tensor, units_P: Tensor, seed: int = 0) -> Estimate:
    """``sum(values) / sum(units)`` with its 95 % interval over resampled prompts."""
    return bootstrap(torch.stack([values_P, units_P], 1), _ratio, seed=seed)


def _ratio(resamples_RP2: Tensor) -> Tensor:
    sums_R2 = resamples_RP2.double().sum(1)
    return sums_R2[:, 0] / sums_R2[:, 1]


def over_draws(values: Sequence[float]) -> Estimate:
    """Mean, lowest and highest of random draws."""
    return Estimate(sum(values) / len(values), min(values), max(values))


# Modules


@dataclass(frozen=True)
class ModulePart:
    """A module's row: ``g_m.d_m`` and ``1/2 d_m'(Hd)``; the rows of all modules add up to the totals.

    ``edit_share`` is its part of ``|d|^2``, ``size_share`` its part of all weights.
    """

    module: str
    first: Estimate
    second: Estimate
    edit_share: float
    size_share: float


def select(vector: Vector, names: Sequence[str]) -> dict[str, Tensor]:
    """The part of a vector in some parameters."""
    return {name: vector[name] for name in names if name in vector}


def by_module(edit: Vector, modules: Modules) -> Reduction:
    """Reduces a derivative to its inner products with the edit in every module [M]."""
    parts = [select(edit, names) for names in modules.values()]
    return lambda _, derivative: torch.stack([inner(part, derivative).cpu() for part in parts])


def module_parts(whole: Derivatives, edit: Vector, loss: SumLoss, modules: Modules) -> tuple[ModulePart, ...]:
    """One row per module of ``along(loss, {"edit": edit}, by_module(...))``, largest second order first."""
    edit_norm, size = float(inner(edit, edit)), sum(param.numel() for param in loss.params.values())
    rows = []
    for m, (module, names) in enumerate(modules.items()):
        part = select(edit, names)
        rows.append(
            ModulePart(
                module,
                per_unit(whole.first["edit"][:, m], loss.units_P),
                per_unit(0.5 * whole.second["edit"][:, m], loss.units_P),
                float(inner(part, part)) / edit_norm,
                sum(loss.params[name].numel() for name in names) / size,
            )
        )
    return tuple(sorted(rows, key=lambda row: -abs(row.second.value)))


# Neurons that two domains share


@dataclass(frozen=True)
class RoutePart:
    """The edit cut in two: S, the neurons that are active for both domains, and everything else.

    ``second_on + cross + second_off`` is the second order of the whole edit, ``first_on + first_off`` its first order.
    ``random_first`` and ``random_second`` are what as many random neurons of each layer carry: the mean over
    ``draws`` sets with the lowest and the highest. ``edit_share`` is S's part of ``|d|^2``.
    """

    other: str
    neurons: int
    all_neurons: int
    edit_share: float
    first_on: Estimate
    first_off: Estimate
    second_on: Estimate
    second_off: Estimate
    cross: Estimate
    draws: int
    random_edit_share: Estimate
    random_first: Estimate
    random_second: Estimate


class OnNeurons(Mapping[str, Tensor]):
    """The part of a vector in the weights of ``chosen`` neurons (bool by layer), zero elsewhere.

    Each tensor is made when it is read, so several sets of neurons cost no memory.
    """

    def __init__(self, vector: Vector, chosen: Mapping[int, Tensor], anatomy: Anatomy) -> None:
        self._vector = vector
        self._masks: dict[str, Tensor] = {}
        for name, value in vector.items():
            axis = anatomy.neuron_axis(name)
            if axis is None or axis.layer not in chosen or value.ndim < 2:
                continue
            mask = chosen[axis.layer].to(value.device).repeat(axis.times)
            shape = [1] * value.ndim
            shape[axis.dim] = len(mask)
            self._masks[name] = mask.view(shape)

    def __getitem__(self, name: str) -> Tensor:
        return self._vector[name] * self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)


def route_part(
    loss: SumLoss,
    edit: Vector,
    shared: Mapping[int, Tensor],
    whole: Derivatives,
    other: str,
    anatomy: Anatomy,
    *,
    draws: int = 5,
    seed: int = 0,
    on_progress: Progress = silent,
) -> RoutePart:
    """Damage on the ``shared`` neurons of each layer (bool), off them, and between the two.

    ``whole`` is ``along`` for ``edit`` with any reduction whose numbers add up to the inner product, ``other`` names
    the later domain. ``draws`` random sets have as many neurons in each layer.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = {"shared": shared} | {f"random {i}": _shuffled(shared, generator) for i in range(draws)}
    parts = {name: OnNeurons(edit, chosen, anatomy) for name, chosen in sets.items()}
    found = along(
        loss,
        parts,
        lambda part, derivative: torch.stack([inner(part, derivative).cpu(), inner(edit, derivative).cpu()]),
        what="shared route",
        on_progress=on_progress,
    )
    units_P, total = loss.units_P, float(loss.units_P.sum())
    first_P, second_P = found.first["shared"][:, 0], 0.5 * found.second["shared"][:, 0]
    cross_P = found.second["shared"][:, 1] - found.second["shared"][:, 0]
    whole_first_P, whole_second_P = whole.first["edit"].sum(1), 0.5 * whole.second["edit"].sum(1)
    norm = float(inner(edit, edit))
    shares = {name: float(inner(part, part)) / norm for name, part in parts.items()}
    randoms = [f"random {i}" for i in range(draws)]
    return RoutePart(
        other=other,
        neurons=sum(int(mask.sum()) for mask in shared.values()),
        all_neurons=sum(len(mask) for mask in shared.values()),
        edit_share=shares["shared"],
        first_on=per_unit(first_P, units_P),
        first_off=per_unit(whole_first_P - first_P, units_P),
        second_on=per_unit(second_P, units_P),
        second_off=per_unit(whole_second_P - second_P - cross_P, units_P),
        cross=per_unit(cross_P, units_P),
        draws=draws,
        random_edit_share=over_draws([shares[name] for name in randoms]),
        random_first=over_draws([float(found.first[name][:, 0].sum()) / total for name in randoms]),
        random_second=over_draws([0.5 * float(found.second[name][:, 0].sum()) / total for name in randoms]),
    )


def _shuffled(chosen: Mapping[int, Tensor], generator: torch.Generator) -> dict[int, Tensor]:
    return {layer: mask[torch.randperm(len(mask), generator=generator)] for layer, mask in chosen.items()}


# Few directions


@dataclass(frozen=True)
class EigenDirection:
    """An eigen-direction of H_A: its eigenvalue, within ``residual`` of which a true one lies, and what it carries.

    ``part`` is ``1/2 (u.d)(u.Hd)`` per unit; ``edit_share`` is ``(u.d)^2 / |d|^2``.
    """

    eigenvalue: float
    residual: float
    part: Estimate
    edit_share: float


@dataclass(frozen=True)
class Subspace:
    """The ends of the spectrum of H_A and the part of ``1/2 d'Hd`` that the strongest directions carry.

    ``directions`` are those of largest ``|eigenvalue|``, strongest first. ``share`` is what they carry together over
    the second order (with curvature of both signs it can lie outside [0, 1]). ``other_half_share`` is the same where
    the directions come from one half of the prompts and the damage from the other: directions that only fit single
    prompts carry nothing there. ``random_share`` is what as many random directions carry on average, ``K / N``.
    """

    iterations: int
    directions: tuple[EigenDirection, ...]
    share: Estimate
    other_half_share: Estimate
    edit_share: float
    random_share: float


def subspace_of(
    loss: SumLoss,
    edit: Vector,
    *,
    iterations: int = 16,
    top: int = 8,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Subspace:
    """``iterations`` of Lanczos on H_A, and the share of second order that the ``top`` strongest directions carry."""
    pairs = _eigenpairs(loss, iterations, seed, "Lanczos", on_progress)
    strongest = _strongest(pairs, top)
    edit_norm, size = float(inner(edit, edit)), sum(param.numel() for param in loss.params.values())
    parts_PK, whole_P = _carried(loss, edit, pairs, strongest, on_progress)
    weights_K = [float(inner(_shaped(pairs.vectors_KN[k], loss.params), edit)) ** 2 / edit_norm for k in strongest]
    halves = _eigenpairs(loss.half(0), iterations, seed, "Lanczos on half of the prompts", on_progress)
    half_PK, half_P = _carried(loss.half(1), edit, halves, _strongest(halves, top), on_progress)
    return Subspace(
        iterations=len(pairs.values_K),
        directions=tuple(
            EigenDirection(
                float(pairs.values_K[k]), float(pairs.residuals_K[k]), per_unit(parts_PK[:, i], loss.units_P), weight
            )
            for i, (k, weight) in enumerate(zip(strongest, weights_K, strict=True))
        ),
        share=per_unit(parts_PK.sum(1), whole_P),
        other_half_share=per_unit(half_PK.sum(1), half_P),
        edit_share=sum(weights_K),
        # a random unit vector u of n dimensions has E[(u.d)(u.Hd)] = d.Hd / n, whatever d and Hd are
        random_share=len(strongest) / size,
    )


def _eigenpairs(loss: SumLoss, iterations: int, seed: int, what: str, on_progress: Progress) -> RitzPairs:
    def product(vector_N: Tensor) -> Tensor:
        found = hessian_product(loss, _shaped(vector_N, loss.params))
        return torch.cat([found.pop(name).flatten() for name in loss.params])

    return lanczos(
        product,
        sum(param.numel() for param in loss.params.values()),
        iterations,
        seed=seed,
        like=next(iter(loss.params.values())).detach(),
        on_iteration=lambda done: on_progress(what, done, iterations),
    )


def _strongest(pairs: RitzPairs, top: int) -> list[int]:
    found: list[int] = pairs.values_K.abs().argsort(descending=True)[:top].tolist()
    return found


def _carried(
    loss: SumLoss, edit: Vector, pairs: RitzPairs, strongest: Sequence[int], on_progress: Progress
) -> tuple[Tensor, Tensor]:
    """``1/2 (u.d)(u.H_p d)`` of every prompt and direction [P, K], and ``1/2 d'H_p d`` [P].

    Over a whole orthonormal basis the parts add up to the second order; an eigen-direction's is
    ``1/2 lambda (u.d)^2``.
    """
    weights_K = [0.5 * float(inner(_shaped(pairs.vectors_KN[k], loss.params), edit)) for k in strongest]

    def reduce(vector: Vector, derivative: Vector) -> Tensor:
        parts = [
            weight * inner(_shaped(pairs.vectors_KN[k], loss.params), derivative).cpu()
            for k, weight in zip(strongest, weights_K, strict=True)
        ]
        return torch.stack([*parts, 0.5 * inner(vector, derivative).cpu()])

    found = along(loss, {"edit": edit}, reduce, what="share carried", on_progress=on_progress).second["edit"]
    return found[:, :-1], found[:, -1]


def _shaped(vector_N: Tensor, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A flat vector as views of it by parameter, on the parameters' device."""
    device = next(iter(params.values())).device
    parts = vector_N.to(device).split([param.numel() for param in params.values()])
    return {name: part.view(param.shape) for (name, param), part in zip(params.items(), parts, strict=True)}


# Multiples of the edit


@dataclass(frozen=True)
class ScalePoint:
    """At ``scale`` times the edit: damage measured, predicted, and their difference on the same prompts.

    ``error`` is ``|difference|`` over the largest of ``|measured|``, ``|s g.d|`` and ``|s^2 1/2 d'Hd|``, which stays
    meaningful where the two orders cancel.
    """

    scale: float
    measured: Estimate
    predicted: Estimate
    difference: Estimate
    error: float

    @property
    def within_noise(self) -> bool:
        """Whether prompts drawn anew could make the difference vanish."""
        return self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class Reach:
    """``largest_scale``: ``error`` below the tolerance at it and at every smaller scale measured; 0 for none."""

    largest_scale: float
    points: tuple[ScalePoint, ...]


def damage_at(
    loss: SumLoss, edit: Vector, scales: Sequence[float], before_P: Tensor, on_progress: Progress = silent
) -> dict[float, Tensor]:
    """``L(params + s d) - L(params)`` of every prompt [P], not yet over units, by scale; ``before_P`` is L(params)."""
    total, found = len(scales) * len(loss.pieces), {}
    for number, scale in enumerate(scales):

        def count(pieces: int, done: int = number * len(loss.pieces)) -> None:
            on_progress("measured", done + pieces, total)

        with displaced(loss.params, edit, scale):
            found[scale] = losses(loss, count) - before_P
    return found


def reach_of(
    measured: Mapping[float, Tensor], first_P: Tensor, second_P: Tensor, units_P: Tensor, tolerance: float = 0.2
) -> Reach:
    """``measured`` (sums of each prompt by scale) beside ``s g.d + s^2 (1/2 d'Hd)``, and how far they agree."""
    points = [_point(s, own_P, s * first_P, s**2 * second_P, units_P) for s, own_P in sorted(measured.items())]
    good = [point.scale for point in itertools.takewhile(lambda point: point.error < tolerance, points)]
    return Reach(good[-1] if good else 0.0, tuple(points))


def _point(scale: float, measured_P: Tensor, first_P: Tensor, second_P: Tensor, units_P: Tensor) -> ScalePoint:
    difference = per_unit(measured_P - first_P - second_P, units_P)
    largest = max(abs(float(values_P.sum() / units_P.sum())) for values_P in (measured_P, first_P, second_P))
    return ScalePoint(
        scale=scale,
        measured=per_unit(measured_P, units_P),
        predicted=per_unit(first_P + second_P, units_P),
        difference=difference,
        error=abs(difference.value) / largest if difference.value else 0.0,
    )


def random_edit_damage(
    loss: SumLoss,
    edit: Vector,
    modules: Modules,
    before_P: Tensor,
    draws: int,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Estimate:
    """The damage measured for random edits as large as ``edit`` in every module: mean, lowest and highest of draws."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for done in range(1, draws + 1):
        with displaced(loss.params, _random_like(edit, modules, generator)):
            found.append(float((losses(loss) - before_P).sum() / loss.units_P.sum()))
        on_progress("random edits", done, draws)
    return over_draws(found)


def _random_like(edit: Vector, modules: Modules, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for names in modules.values():
        part = select(edit, names)
        noise = {n: torch.randn(v.shape, generator=generator, dtype=torch.float32).to(v) for n, v in part.items()}
        size = float(inner(noise, noise)) ** 0.5
        scale = float(inner(part, part)) ** 0.5 / size if size else 0.0
        for name, value in noise.items():
            yield name, value.mul_(scale)
