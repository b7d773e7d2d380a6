"""How much it would help to restore a weight: one number per weight, larger is better, 0 means never.

Notation: d the later edit of a tensor, F the diagonal of the domain's Fisher matrix, both of one shape.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from counterpoint.recovery.rolling_back.edit import Edit
from counterpoint.recovery.rolling_back.region import Region


@dataclass(frozen=True)
class WeightScores:
    """The scores of an edit's weights by one rule, inside a region; called with the name of a tensor.

    The rule is ``damage`` (``F d^2``, the diagonal of the second-order damage) or ``magnitude`` (``|d|``).
    """

    rule: str
    edit: Edit
    region: Region
    fisher: Mapping[str, Tensor] = field(default_factory=dict)
    """For ``damage``: F by tensor; names that are missing have F = 0."""

    def __call__(self, name: str) -> Tensor:
        """One tensor's scores: float32, not negative."""
        return self.region.limit(self.edit.neurons(name), self._anywhere(name)).float()

    def squared(self, name: str) -> Tensor:
        """What is summed over a neuron: ``F d^2`` and not its root where the rule is ``damage``; float64."""
        scores = self.region.limit(self.edit.neurons(name), self._anywhere(name)).double()
        return scores.square() if self.rule == "damage" else scores

    def _anywhere(self, name: str) -> Tensor:
        size = self.edit.change(name).abs()
        if self.rule == "magnitude":
            return size
        # the root of F d^2 ranks alike and does not vanish in float32
        return self.fisher[name].sqrt() * size if name in self.fisher else torch.zeros_like(size)


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
