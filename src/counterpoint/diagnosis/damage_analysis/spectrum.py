"""How few directions carry the second-order damage: eigen-directions of H_A beside random directions.

Legend: P prompts, K directions, N parameters, M modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis.damage_analysis.curvature import Direction, SumLoss, along, hessian_product
from counterpoint.diagnosis.damage_analysis.lanczos import RitzPairs, carried, lanczos, random_directions
from counterpoint.diagnosis.damage_analysis.parts import Modules, over_draws, per_unit
from counterpoint.progress import Progress, silent
from counterpoint.stats import Estimate


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
class Spectrum:
    """The ends of the spectrum of H_A and the part of ``1/2 d'Hd`` that the strongest directions carry.

    ``directions`` are those of largest ``|eigenvalue|``, strongest first. ``share`` is what they carry together over
    the second order (with curvature of both signs it can lie outside [0, 1]). ``other_half_share`` is the same where
    the directions come from one half of the prompts and the damage from the other: directions that only fit single
    prompts carry nothing there. ``random_share`` is the share of as many
    random directions, ``module_random_share`` of random directions with the same norm in each module: mean, lowest and
    highest of ``draws``. ``largest`` and ``smallest`` are all eigenvalues found, from either end.
    """

    iterations: int
    directions: tuple[EigenDirection, ...]
    share: Estimate
    other_half_share: Estimate
    edit_share: float
    random_share: Estimate
    module_random_share: Estimate
    expected_random_share: float
    draws: int
    largest: tuple[float, ...]
    smallest: tuple[float, ...]


def spectrum_of(
    loss: SumLoss,
    edit: Direction,
    product: Direction,
    modules: Modules,
    *,
    iterations: int = 16,
    top: int = 8,
    draws: int = 20,
    seed: int = 0,
    on_progress: Progress = silent,
) -> Spectrum:
    """Lanczos on H_A, and the share of the second-order damage that its strongest directions carry.

    Args:
        loss: the earlier domain's.
        edit: d.
        product: ``H d``, over units.
        modules: parameters by module.
        iterations: Hessian products; also the number of eigenvalues found.
        top: directions whose share is measured, at most ``iterations``.
        draws: sets of random directions.
        seed: of the start and of the random directions.
        on_progress: called with products done and in total.
    """
    names = [name for part in modules.values() for name in part]
    pairs = _eigenpairs(loss, names, iterations, seed, "Lanczos", on_progress)
    strongest = _strongest(pairs, top)
    vectors_KN = pairs.vectors_KN[strongest.to(pairs.vectors_KN.device)]
    full = {name: edit.get(name, torch.zeros_like(param)) for name, param in loss.params.items()}
    edit_N, product_N = _flat(full, names), _flat(product, names)
    parts_PK, whole_P = _parts_by_prompt(loss, edit, vectors_KN, edit_N, names, on_progress)
    halves = _eigenpairs(loss.half(0), names, iterations, seed, "Lanczos on half of the prompts", on_progress)
    half_KN = halves.vectors_KN[_strongest(halves, top).to(halves.vectors_KN.device)]
    half_PK, half_P = _parts_by_prompt(loss.half(1), edit, half_KN, edit_N, names, on_progress)
    shares = [_random_shares(vectors_KN, edit_N, product_N, loss.params, modules, draws, seed, same) for same in (0, 1)]
    weight_K = (vectors_KN @ edit_N).double().cpu() ** 2 / float(edit_N.double() @ edit_N.double())
    return Spectrum(
        iterations=len(pairs.values_K),
        directions=_directions(pairs, strongest, parts_PK, weight_K, loss.units_P),
        share=per_unit(parts_PK.sum(1), whole_P),
        other_half_share=per_unit(half_PK.sum(1), half_P),
        edit_share=float(weight_K.sum()),
        random_share=over_draws(shares[0]),
        module_random_share=over_draws(shares[1]),
        expected_random_share=len(strongest) / len(edit_N),
        draws=draws,
        largest=tuple(pairs.values_K[:top].tolist()),
        smallest=tuple(pairs.values_K.flip(0)[:top].tolist()),
    )


def _eigenpairs(
    loss: SumLoss, names: list[str], iterations: int, seed: int, what: str, on_progress: Progress
) -> RitzPairs:
    return lanczos(
        lambda vector_N: _flat(hessian_product(loss, _unflat(vector_N, loss.params, names)), names),
        sum(param.numel() for param in loss.params.values()),
        iterations,
        seed=seed,
        like=next(iter(loss.params.values())).detach(),
        on_iteration=lambda done: on_progress(what, done, iterations),
    )


def _strongest(pairs: RitzPairs, top: int) -> Tensor:
    return pairs.values_K.abs().argsort(descending=True)[:top]


def _directions(
    pairs: RitzPairs, strongest: Tensor, parts_PK: Tensor, weight_K: Tensor, units_P: Tensor
) -> tuple[EigenDirection, ...]:
    return tuple(
        EigenDirection(
            float(pairs.values_K[index]),
            float(pairs.residuals_K[index]),
            per_unit(parts_PK[:, k], units_P),
            float(weight_K[k]),
        )
        for k, index in enumerate(strongest.tolist())
    )


def _parts_by_prompt(
    loss: SumLoss, edit: Direction, vectors_KN: Tensor, edit_N: Tensor, names: list[str], on_progress: Progress
) -> tuple[Tensor, Tensor]:
    """``1/2 (u.d)(u.H_p d)`` of every prompt and direction [P, K], and ``1/2 d'H_p d`` [P]."""

    def reduce(direction: Direction, vector: Direction) -> Tensor:
        vector_N = _flat(vector, names)
        whole = 0.5 * torch.dot(edit_N, vector_N).double()
        return torch.cat([carried(vectors_KN, edit_N, vector_N), whole.unsqueeze(0)])

    found = along(loss, {"edit": edit}, reduce, what="share carried", on_progress=on_progress).second["edit"]
    return found[:, :-1], found[:, -1]


def _random_shares(
    vectors_KN: Tensor,
    edit_N: Tensor,
    product_N: Tensor,
    params: Mapping[str, Tensor],
    modules: Modules,
    draws: int,
    seed: int,
    same_modules: int,
) -> list[float]:
    """The share that random directions carry, in ``draws`` draws; with ``same_modules`` as strong in each module."""
    sizes = [sum(params[name].numel() for name in names) for names in modules.values()]
    slices_KM = torch.stack([part.norm(dim=1) for part in vectors_KN.split(sizes, dim=1)], 1)
    generator = torch.Generator().manual_seed(seed + 1 + same_modules)
    total = 0.5 * float(edit_N.double() @ product_N.double())
    found = []
    for _ in range(draws):
        weights_KM = slices_KM if same_modules else None
        directions_KN = random_directions(len(vectors_KN), sizes, weights_KM, generator, vectors_KN)
        found.append(float(carried(directions_KN, edit_N, product_N).sum()) / total if total else 0.0)
    return found


def _flat(direction: Direction, names: list[str]) -> Tensor:
    return torch.cat([direction[name].detach().flatten() for name in names])


def _unflat(vector_N: Tensor, params: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    parts = vector_N.split([params[name].numel() for name in names])
    return {name: part.view(params[name].shape) for name, part in zip(names, parts, strict=True)}
