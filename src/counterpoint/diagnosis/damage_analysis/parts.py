"""Which parts of an edit carry its damage: modules, blocks between modules, and the neurons that two domains share.

Every decomposition adds up to the whole: by rows ``1/2 d_m'(Hd)`` over modules m, and over a set S of weights and its
complement C as ``1/2 d_S'Hd_S + d_S'Hd_C + 1/2 d_C'Hd_C``.

Legend: P prompts, M modules, R numbers of a reduction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis._chance import bootstrap
from counterpoint.diagnosis.damage_analysis.curvature import Curvature, Direction, Reduction, SumLoss, along, inner
from counterpoint.progress import Progress, silent
from counterpoint.stats import Estimate

Modules = dict[str, tuple[str, ...]]
"""The parameters of every module, in model order."""


@dataclass(frozen=True)
class ModulePart:
    """A module's row: ``g_m.d_m`` and ``1/2 d_m'(Hd)``; the rows of all modules add up to the totals.

    ``own_block`` is ``1/2 d_m'H_mm d_m``, the module's edit alone, and null where it was not asked for. ``edit_share``
    is its part of ``|d|^2``, beside ``size_share``, its part of all weights.
    """

    module: str
    first: Estimate
    second: Estimate
    own_block: Estimate | None
    edit_share: float
    size_share: float


@dataclass(frozen=True)
class Span:
    """Curvature in the space that the modules' parts of the edit span: ``d_i'Hd_j``.

    ``forms`` [M][M] holds ``1/2 d_i'Hd_j`` per unit; its entries add up to the second order. ``eigenvalues`` are those
    of ``d_i'Hd_j / (|d_i| |d_j|)``, by falling contribution to the second order; ``parts`` are those contributions.
    """

    modules: tuple[str, ...]
    forms: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]
    parts: tuple[float, ...]


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


def per_unit(values_P: Tensor, units_P: Tensor, seed: int = 0) -> Estimate:
    """``sum(values) / sum(units)`` with its 95 % interval over resampled prompts."""
    return bootstrap(torch.stack([values_P, units_P], 1), _ratio, seed=seed)


def _ratio(resamples_RP2: Tensor) -> Tensor:
    sums_R2 = resamples_RP2.double().sum(1)
    return sums_R2[:, 0] / sums_R2[:, 1]


def over_draws(values: Sequence[float]) -> Estimate:
    """Mean, lowest and highest of random draws."""
    return Estimate(sum(values) / len(values), min(values), max(values))


def modules_of(params: Mapping[str, Tensor], anatomy: Anatomy) -> Modules:
    """Parameters by module, in model order."""
    found: dict[str, list[str]] = {}
    for name in params:
        found.setdefault(anatomy.module_of(name), []).append(name)
    return {module: tuple(names) for module, names in found.items()}


def select(direction: Direction, names: Sequence[str]) -> dict[str, Tensor]:
    """The part of a direction in some parameters."""
    return {name: direction[name] for name in names if name in direction}


def by_module(edit: Direction, modules: Modules) -> Reduction:
    """Reduces a vector to its inner products with the edit in every module [M]."""
    parts = [select(edit, names) for names in modules.values()]
    return lambda direction, vector: torch.stack([inner(part, vector).cpu() for part in parts])


def module_parts(
    whole: Curvature, blocks_PMM: Tensor | None, edit: Direction, loss: SumLoss, modules: Modules
) -> tuple[ModulePart, ...]:
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
                None if blocks_PMM is None else per_unit(0.5 * blocks_PMM[:, m, m], loss.units_P),
                float(inner(part, part)) / edit_norm,
                sum(loss.params[name].numel() for name in names) / size,
            )
        )
    return tuple(sorted(rows, key=lambda row: -abs(row.second.value)))


def block_forms(loss: SumLoss, edit: Direction, modules: Modules, on_progress: Progress = silent) -> Tensor:
    """``d_i'Hd_j`` of every prompt [P, M, M], not yet over units: one Hessian product per module."""
    parts = {module: select(edit, names) for module, names in modules.items()}
    found = along(loss, parts, by_module(edit, modules), what="blocks of modules", on_progress=on_progress)
    return torch.stack([found.second[module] for module in modules], 2)


def span_of(blocks_PMM: Tensor, edit: Direction, loss: SumLoss, modules: Modules) -> Span:
    """The spectrum in the span of the modules' parts; modules that the edit leaves alone are left out."""
    parts = [select(edit, names) for names in modules.values()]
    norms_M = torch.stack([inner(part, part).cpu() for part in parts]).sqrt()
    changed = norms_M > 0
    forms_MM = (blocks_PMM.sum(0) / loss.units_P.sum())[changed][:, changed]
    forms_MM = 0.5 * (forms_MM + forms_MM.T)  # symmetric up to rounding already
    norms_M = norms_M[changed]
    values_M, vectors_MM = torch.linalg.eigh(forms_MM / torch.outer(norms_M, norms_M))
    parts_M = 0.5 * values_M * (vectors_MM.T @ norms_M) ** 2
    order = parts_M.abs().argsort(descending=True)
    names = tuple(module for module, kept in zip(modules, changed.tolist(), strict=True) if kept)
    forms = tuple(tuple(row) for row in (0.5 * forms_MM).tolist())
    return Span(names, forms, tuple(values_M[order].tolist()), tuple(parts_M[order].tolist()))


def on_neurons(direction: Direction, chosen: Mapping[int, Tensor], anatomy: Anatomy) -> dict[str, Tensor]:
    """The part of a direction in the weights of chosen neurons: rows and columns of MLP projections.

    Args:
        direction: by parameter name.
        chosen: for each layer a bool vector, true for the chosen neurons.
        anatomy: of the model whose parameters these are.
    """
    found = {}
    for name, value in direction.items():
        axis = anatomy.neuron_axis(name)
        if axis is None or axis.layer not in chosen or value.ndim < 2:
            continue
        mask = chosen[axis.layer].to(value.device).repeat(axis.times)
        shape = [1] * value.ndim
        shape[axis.dim] = len(mask)
        found[name] = value * mask.view(shape)
    return found


def route_part(
    loss: SumLoss,
    edit: Direction,
    shared: Mapping[int, Tensor],
    whole: Curvature,
    other: str,
    anatomy: Anatomy,
    *,
    draws: int = 5,
    seed: int = 0,
    on_progress: Progress = silent,
) -> RoutePart:
    """Damage on the shared route, off it, and between the two, beside random neurons of the same number.

    Args:
        loss: the earlier domain's.
        edit: the later edit d.
        shared: the shared neurons by layer, bool.
        whole: ``along`` for ``edit`` with any reduction whose numbers add up to the inner product.
        other: name of the later domain.
        anatomy: of the model.
        draws: random sets, each with as many neurons in each layer as ``shared``.
        seed: of their private random stream.
        on_progress: called with pieces done.
    """
    generator = torch.Generator().manual_seed(seed)
    sets = {"shared": shared} | {f"random {i}": _shuffled(shared, generator) for i in range(draws)}
    parts = {name: on_neurons(edit, chosen, anatomy) for name, chosen in sets.items()}
    found = along(
        loss,
        parts,
        lambda part, vector: torch.stack([inner(part, vector).cpu(), inner(edit, vector).cpu()]),
        what="shared route",
        on_progress=on_progress,
    )
    units_P, total = loss.units_P, float(loss.units_P.sum())
    first_P, second_P = found.first["shared"][:, 0], 0.5 * found.second["shared"][:, 0]
    cross_P = found.second["shared"][:, 1] - found.second["shared"][:, 0]
    whole_first_P, whole_second_P = whole.first["edit"].sum(1), 0.5 * whole.second["edit"].sum(1)
    norm = float(inner(edit, edit))
    randoms = [f"random {i}" for i in range(draws)]
    return RoutePart(
        other=other,
        neurons=sum(int(mask.sum()) for mask in shared.values()),
        all_neurons=sum(len(mask) for mask in shared.values()),
        edit_share=float(inner(parts["shared"], parts["shared"])) / norm,
        first_on=per_unit(first_P, units_P),
        first_off=per_unit(whole_first_P - first_P, units_P),
        second_on=per_unit(second_P, units_P),
        second_off=per_unit(whole_second_P - second_P - cross_P, units_P),
        cross=per_unit(cross_P, units_P),
        draws=draws,
        random_edit_share=over_draws([float(inner(parts[name], parts[name])) / norm for name in randoms]),
        random_first=over_draws([float(found.first[name][:, 0].sum()) / total for name in randoms]),
        random_second=over_draws([0.5 * float(found.second[name][:, 0].sum()) / total for name in randoms]),
    )


def _shuffled(chosen: Mapping[int, Tensor], generator: torch.Generator) -> dict[int, Tensor]:
    return {layer: mask[torch.randperm(len(mask), generator=generator)] for layer, mask in chosen.items()}
