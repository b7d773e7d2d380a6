"""How much it would help to restore a weight: one number per weight, larger is better, 0 means never.

Notation: d the later edit of a tensor, d_A the domain's own, F the diagonal of the domain's Fisher matrix. All of one
shape.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterpoint.recovery.rolling_back.edit import Edit
from counterpoint.recovery.rolling_back.region import Region, spread

SCORES = {
    "damage": "F * d^2: the diagonal of the second-order damage",
    "magnitude": "|d|: the size of the edit",
    "opposition": "|d| where it points against the domain's own edit, 0 elsewhere",
    "activity": "how much the weight's neuron contributes on the domain's tokens, times |d|",
}
"""The scores by name, with what each one is."""


def damage(d: Tensor, fisher: Tensor) -> Tensor:
    """``sqrt(F) |d|``, the root of ``F d^2``: it ranks alike and does not vanish in float32."""
    return fisher.sqrt() * d.abs()


def opposition(d: Tensor, own: Tensor) -> Tensor:
    """``|d|`` where d and d_A have opposite signs, 0 elsewhere."""
    return torch.where(d.sign() * own.sign() < 0, d.abs(), 0)


@dataclass(frozen=True)
class WeightScores:
    """The scores of an edit's weights by one rule, inside a region; called with the name of a tensor."""

    rule: str
    edit: Edit
    region: Region
    fisher: Mapping[str, Tensor] = field(default_factory=dict)
    """For ``damage``: F by tensor; names that are missing have F = 0."""
    activity: Mapping[int, Tensor] = field(default_factory=dict)
    """For ``activity``: contribution of every neuron by layer [N]."""

    def __call__(self, name: str) -> Tensor:
        """One tensor's scores: float32, not negative."""
        return self.region.limit(self.edit.neurons(name), self._anywhere(name)).float()

    def squared(self, name: str) -> Tensor:
        """What is summed over a neuron: ``F d^2`` and not its root where the rule is ``damage``; float64."""
        scores = self.region.limit(self.edit.neurons(name), self._anywhere(name)).double()
        return scores.square() if self.rule == "damage" else scores

    def _anywhere(self, name: str) -> Tensor:
        d = self.edit.change(name)
        return _RULES[self.rule](self, name, d)

    def _damage(self, name: str, d: Tensor) -> Tensor:
        return damage(d, self.fisher[name]) if name in self.fisher else torch.zeros_like(d)

    def _magnitude(self, name: str, d: Tensor) -> Tensor:
        return d.abs()

    def _opposition(self, name: str, d: Tensor) -> Tensor:
        return opposition(d, self.edit.own_change(name))

    def _activity(self, name: str, d: Tensor) -> Tensor:
        axis = self.edit.neurons(name)
        if axis is None or axis.layer not in self.activity:
            return torch.zeros_like(d)
        return d.abs() * spread(self.activity[axis.layer].to(d), axis)


_RULES: dict[str, Callable[[WeightScores, str, Tensor], Tensor]] = {
    "damage": WeightScores._damage,
    "magnitude": WeightScores._magnitude,
    "opposition": WeightScores._opposition,
    "activity": WeightScores._activity,
}


@dataclass(frozen=True)
class RandomScores:
    """A random order of the weights that the edit changed inside a region: the same ``draw`` gives the same order."""

    edit: Edit
    region: Region
    seed: int
    draw: int

    def __call__(self, name: str) -> Tensor:
        """One tensor's scores: float32 in (0, 1], 0 where the edit changed nothing."""
        d = self.edit.change(name)
        generator = torch.Generator().manual_seed(private_seed(self.seed, self.draw, name))
        order = 1 - torch.rand(d.shape, generator=generator)
        return self.region.limit(self.edit.neurons(name), order * (d != 0))


def private_seed(*parts: int | str) -> int:
    """A seed that depends on all parts alike."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest()[:7], "big")
