"""Routes as sets of units, how far those of two domains overlap, and how stable each is. U: units of all layers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis._chance import jaccard, jaccard_by_chance
from counterpoint.diagnosis.route_analysis.capture import Activity


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
    """How far the routes of two domains overlap: ``shared`` units in both, and their Jaccard.

    ``chance_in_layers`` is the Jaccard of random sets with as many units in each layer: that two domains use the same
    layers most is no shared route. ``p_value_in_layers`` is the chance that such sets share as many; it takes their
    number for normal, with its exact mean and variance.
    """

    first: str
    second: str
    kind: str
    fraction: float
    jaccard: float
    shared: int
    chance_in_layers: float
    p_value_in_layers: float


def stability(domain: str, activity: Activity, kind: str, choice: Choice, fraction: float) -> Stability:
    """Overlap of a domain's route with itself, measured on other prompts."""
    first_U, second_U = (choice.top(activity.mean(kind, half), fraction) for half in (0, 1))
    chance = jaccard_by_chance(int(first_U.sum()), int(second_U.sum()), len(first_U))
    return Stability(domain, kind, fraction, jaccard(first_U, second_U), chance)


def overlap(
    names: tuple[str, str], first_U: Tensor, second_U: Tensor, layers_U: Tensor, kind: str, fraction: float
) -> Overlap:
    """The overlap of two domains' routes, beside chance."""
    shared = int((first_U & second_U).sum())
    expected, variance = _shared_in_layers(first_U, second_U, layers_U)
    union = int(first_U.sum()) + int(second_U.sum()) - expected
    return Overlap(
        first=names[0],
        second=names[1],
        kind=kind,
        fraction=fraction,
        jaccard=jaccard(first_U, second_U),
        shared=shared,
        chance_in_layers=expected / union if union else 0.0,
        p_value_in_layers=_upper_tail(shared - 0.5 - expected, variance),
    )


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


def _upper_tail(excess: float, variance: float) -> float:
    if variance == 0:
        return 1.0 if excess <= 0 else 0.0
    return math.erfc(excess / math.sqrt(2 * variance)) / 2
