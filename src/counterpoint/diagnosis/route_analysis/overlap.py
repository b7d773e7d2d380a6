"""Routes as sets of units, and how far the routes of two domains overlap: beside chance and beside the same domain.

Legend: K blocks of prompts, U units (neurons or heads) of all layers, R relabelings.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis.route_analysis.capture import Activity
from counterpoint.diagnosis.statistics import jaccard, jaccard_by_chance, overlap_p_value

RELABELINGS = 2000
"""Random divisions of two domains' blocks for the hypothesis that both use one route."""


@dataclass(frozen=True)
class Choice:
    """How a route is chosen: the top ``fraction`` of all units, or of each layer's."""

    layers_U: Tensor
    per_layer: bool = False

    def top(self, contribution_U: Tensor, fraction: float) -> Tensor:
        """The route as a bool vector [U]: at least one unit, and none that contributes nothing."""
        if not self.per_layer:
            return _top(contribution_U, fraction)
        route_U = torch.zeros(len(contribution_U), dtype=torch.bool)
        for layer in self.layers_U.unique():
            inside = self.layers_U == layer
            route_U[inside] = _top(contribution_U[inside], fraction)
        return route_U


@dataclass(frozen=True)
class Stability:
    """Jaccard of a domain's route between two halves that share no prompt, beside that of random sets."""

    domain: str
    kind: str
    fraction: float
    jaccard: float
    chance: float


@dataclass(frozen=True)
class Overlap:
    """How far the routes of two domains overlap.

    ``jaccard`` of the routes on all completions, ``shared`` units in both. ``chance`` is the Jaccard of random sets of
    these sizes, ``p_value`` the exact (hypergeometric) chance that they share as many. ``chance_in_layers`` is that of
    random sets with as many units in each layer, which is higher where both domains use the same layers most;
    ``p_value_in_layers`` takes their number for normal, with its exact mean and variance.

    ``halves`` is the mean Jaccard between a half of one and a half of the other, and ``ceiling`` that between the two
    halves of one domain (mean of both domains): what the same domain would reach. ``of_ceiling`` is where ``halves``
    lies between ``chance_in_layers`` (0) and ``ceiling`` (1). ``p_same`` tests whether both could be one domain: see
    ``same_route``.
    """

    first: str
    second: str
    kind: str
    fraction: float
    jaccard: float
    shared: int
    chance: float
    p_value: float
    chance_in_layers: float
    p_value_in_layers: float
    halves: float
    ceiling: float
    of_ceiling: float
    p_same: float


@dataclass(frozen=True)
class RouteSets:
    """One domain's routes at one fraction, bool [U]: on everything, on two halves, and on each block of prompts."""

    all_U: Tensor
    even_U: Tensor
    odd_U: Tensor
    blocks_KU: Tensor
    layers_U: Tensor

    @classmethod
    def of(cls, activity: Activity, kind: str, choice: Choice, fraction: float) -> "RouteSets":
        """The routes of ``neuron`` or ``head`` contributions."""
        blocks = list(range(len(activity.tokens_K)))
        all_U, even_U, odd_U, *each = (
            choice.top(activity.mean(kind, part), fraction)
            for part in (blocks, blocks[::2], blocks[1::2], *([block] for block in blocks))
        )
        return cls(all_U, even_U, odd_U, torch.stack(each), choice.layers_U)


def stability(domain: str, sets: RouteSets, kind: str, fraction: float) -> Stability:
    """Overlap of a domain's route with itself, measured on other prompts."""
    chance = jaccard_by_chance(int(sets.even_U.sum()), int(sets.odd_U.sum()), len(sets.even_U))
    return Stability(domain, kind, fraction, jaccard(sets.even_U, sets.odd_U), chance)


def overlap(names: tuple[str, str], a: RouteSets, b: RouteSets, kind: str, fraction: float, seed: int = 0) -> Overlap:
    """The overlap of two domains' routes, beside chance and beside each domain with itself."""
    shared, total = int((a.all_U & b.all_U).sum()), len(a.all_U)
    sizes = int(a.all_U.sum()), int(b.all_U.sum())
    expected, variance = _shared_in_layers(a.all_U, b.all_U, a.layers_U)
    chance_in_layers = _of_sizes(expected, *sizes)
    halves = (jaccard(a.even_U, b.odd_U) + jaccard(a.odd_U, b.even_U)) / 2
    ceiling = (jaccard(a.even_U, a.odd_U) + jaccard(b.even_U, b.odd_U)) / 2
    return Overlap(
        first=names[0],
        second=names[1],
        kind=kind,
        fraction=fraction,
        jaccard=jaccard(a.all_U, b.all_U),
        shared=shared,
        chance=jaccard_by_chance(*sizes, total),
        p_value=overlap_p_value(shared, *sizes, total),
        chance_in_layers=chance_in_layers,
        p_value_in_layers=_upper_tail(shared - 0.5 - expected, variance),
        halves=halves,
        ceiling=ceiling,
        of_ceiling=_between(halves, chance_in_layers, ceiling),
        p_same=same_route(a.blocks_KU, b.blocks_KU, seed),
    )


def same_route(first_KU: Tensor, second_KU: Tensor, seed: int = 0) -> float:
    """How often blocks of prompts that are divided at random overlap as little as the blocks of the two domains.

    Every block has a route of its own. Were the domains one, each division of all blocks would be as likely as the one
    into domains, so the share of divisions whose two sides overlap no more, in the mean over pairs of blocks, is an
    exact p-value (blocks of both having about as many tokens; the division into domains counts as one of those drawn).
    """
    routes_KU = torch.cat([first_KU, second_KU]).float()
    shared_KK = (routes_KU @ routes_KU.T).double()
    sizes_K = shared_KK.diagonal()
    jaccard_KK = shared_KK / (sizes_K[:, None] + sizes_K - shared_KK).clamp(min=1)
    is_first_K = torch.arange(len(routes_KU)) < len(first_KU)
    generator = torch.Generator().manual_seed(seed)
    orders_RK = torch.rand(RELABELINGS, len(routes_KU), generator=generator).argsort(1)
    sides_RK = torch.cat([is_first_K.unsqueeze(0), is_first_K[orders_RK]]).double()
    between_R = torch.einsum("rk,kl,rl->r", sides_RK, jaccard_KK, 1 - sides_RK)
    return float((between_R <= between_R[0] + 1e-9).double().mean())


def _top(contribution_U: Tensor, fraction: float) -> Tensor:
    count = max(1, round(fraction * len(contribution_U))) if len(contribution_U) else 0
    # units that contribute nothing are of no route, and equal ones would be chosen by their place alone
    order = contribution_U.argsort(descending=True, stable=True)[:count]
    route_U = torch.zeros(len(contribution_U), dtype=torch.bool)
    route_U[order] = True
    return route_U & (contribution_U > 0)


def _shared_in_layers(first_U: Tensor, second_U: Tensor, layers_U: Tensor) -> tuple[float, float]:
    """Mean and variance of what random sets share that have as many units in each layer: hypergeometric ones, added."""
    mean, variance = 0.0, 0.0
    for layer in layers_U.unique():
        inside = layers_U == layer
        n, a, b = int(inside.sum()), int(first_U[inside].sum()), int(second_U[inside].sum())
        mean += a * b / n
        if n > 1:
            variance += a * b * (n - a) * (n - b) / (n * n * (n - 1))
    return mean, variance


def _of_sizes(shared: float, size_a: int, size_b: int) -> float:
    union = size_a + size_b - shared
    return shared / union if union else 0.0


def _upper_tail(excess: float, variance: float) -> float:
    if variance == 0:
        return 1.0 if excess <= 0 else 0.0
    return math.erfc(excess / math.sqrt(2 * variance)) / 2


def _between(value: float, zero: float, one: float) -> float:
    """Where ``value`` lies between two levels; not a number where they are not apart."""
    return (value - zero) / (one - zero) if one > zero else math.nan
