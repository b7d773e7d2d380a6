"""Sets of weights to restore: the top coordinates of a ranking or its top neurons, for any number of budgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.recovery.rolling_back.edit import Edit, Watch
from counterpoint.recovery.rolling_back.ranking import Cut, Ranking
from counterpoint.recovery.rolling_back.region import Region, gather, spread
from counterpoint.recovery.rolling_back.scores import RandomScores, WeightScores, private_seed


class Mask(Protocol):
    """A set of weights."""

    @property
    def num_weights(self) -> int:
        """How many."""
        ...

    def of(self, name: str) -> Tensor | None:
        """Which weights of one tensor it holds: bool, broadcast over the tensor; None for none of them."""
        ...


class Chooser(Protocol):
    """An order of candidates, best first."""

    @property
    def num_candidates(self) -> int:
        """Weights that it can choose."""
        ...

    def masks(self, counts: Sequence[int], watch: Watch) -> list[Mask]:
        """For each count the best candidates that have together at most as many weights."""
        ...


@dataclass(frozen=True)
class CoordinateMask:
    """The top coordinates; scores are computed again for every tensor, so it takes no memory."""

    cut: Cut
    scores: Callable[[str], Tensor]

    @property
    def num_weights(self) -> int:
        """Weights in it."""
        return self.cut.count

    def of(self, name: str) -> Tensor | None:
        """Which weights of one tensor it holds."""
        return self.cut.mask(name, self.scores(name)) if name in self.cut.ties else None


@dataclass(frozen=True)
class Coordinates:
    """Coordinates in the order of their scores."""

    ranking: Ranking

    @property
    def num_candidates(self) -> int:
        """Weights with a score above 0."""
        return self.ranking.num_candidates

    def masks(self, counts: Sequence[int], watch: Watch) -> list[Mask]:
        """Exactly ``count`` coordinates each."""
        return [CoordinateMask(cut, self.ranking.scores) for cut in self.ranking.cuts(counts, watch)]


@dataclass(frozen=True)
class NeuronMask:
    """Whole neurons by layer: bool [N]."""

    chosen: Mapping[int, Tensor]
    num_weights: int
    anatomy: Anatomy

    def of(self, name: str) -> Tensor | None:
        """Their rows and columns in one tensor."""
        axis = self.anatomy.neuron_axis(name)
        if axis is None or not bool(self.chosen.get(axis.layer, torch.zeros(1)).any()):
            return None
        return spread(self.chosen[axis.layer], axis)


@dataclass(frozen=True)
class Neurons:
    """Neurons in the order of ``scores`` [layer -> N, float64]; ``sizes`` [layer] are the weights that each has."""

    scores: Mapping[int, Tensor]
    sizes: Mapping[int, int]
    anatomy: Anatomy = field(default_factory=Anatomy)

    @property
    def num_candidates(self) -> int:
        """Weights of neurons with a score above 0."""
        return sum(int((own > 0).sum()) * self.sizes[layer] for layer, own in self.scores.items())

    def masks(self, counts: Sequence[int], watch: Watch = lambda done, total: None) -> list[Mask]:
        """The best neurons until the next one would exceed the count; none where even the best one does."""
        scores_U = torch.cat(list(self.scores.values()))
        sizes_U = torch.cat([torch.full((len(own),), self.sizes[layer]) for layer, own in self.scores.items()])
        order_U = scores_U.argsort(descending=True, stable=True)
        order_U = order_U[scores_U[order_U] > 0]
        filled_U = sizes_U[order_U].cumsum(0)
        masks: list[Mask] = []
        for count in counts:
            taken = order_U[filled_U <= count]
            chosen_U = torch.zeros(len(scores_U), dtype=torch.bool)
            chosen_U[taken] = True
            parts = chosen_U.split([len(own) for own in self.scores.values()])
            masks.append(
                NeuronMask(dict(zip(self.scores, parts, strict=True)), int(sizes_U[taken].sum()), self.anatomy)
            )
        return masks


def coordinates(names: Sequence[str], scores: Callable[[str], Tensor], watch: Watch) -> Coordinates:
    """Ranks the coordinates of the tensors ``names``."""
    return Coordinates(Ranking.of(names, scores, watch))


def neurons(scores: WeightScores, watch: Watch) -> Neurons:
    """Ranks neurons by the sum of their weights' scores."""
    edit, sizes = scores.edit, _neuron_sizes(scores.edit)
    totals: dict[int, Tensor] = {}
    for done, name in enumerate(edit.names, 1):
        axis = edit.neurons(name)
        if axis is not None:
            own_N = gather(scores.squared(name), axis)
            totals[axis.layer] = totals[axis.layer] + own_N if axis.layer in totals else own_N
        watch(done, len(edit.names))
    return Neurons(dict(sorted(totals.items())), sizes, edit.anatomy)


def random_neurons(edit: Edit, region: Region, seed: int, draw: int) -> Neurons:
    """A random order of the neurons that the edit changed inside the region."""
    changed = neurons(WeightScores("magnitude", edit, region), lambda done, total: None)
    orders = {}
    for layer, own_N in changed.scores.items():
        generator = torch.Generator().manual_seed(private_seed(seed, draw, layer))
        orders[layer] = (1 - torch.rand(len(own_N), generator=generator, dtype=torch.float64)) * (own_N > 0)
    return Neurons(orders, changed.sizes, edit.anatomy)


def random_coordinates(edit: Edit, region: Region, names: Sequence[str], seed: int, draw: int) -> Coordinates:
    """A random order of the coordinates that the edit changed inside the region."""
    return coordinates(names, RandomScores(edit, region, seed, draw), lambda done, total: None)


def _neuron_sizes(edit: Edit) -> dict[int, int]:
    """Weights of one neuron by layer."""
    sizes: dict[int, int] = {}
    for name in edit.names:
        axis = edit.neurons(name)
        if axis is not None:
            sizes[axis.layer] = sizes.get(axis.layer, 0) + edit.size(name) * axis.times // edit.shape(name)[axis.dim]
    return sizes
