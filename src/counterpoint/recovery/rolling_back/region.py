"""Where weights may be restored: everywhere, in the neurons of MLPs, or in those that two domains share."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.anatomy import NeuronAxis


@dataclass(frozen=True)
class Region:
    """``neurons_only`` leaves out all but the weights of neurons; ``shared`` [layer -> bool, N] all other neurons."""

    neurons_only: bool = False
    shared: Mapping[int, Tensor] | None = None

    def holds(self, axis: NeuronAxis | None) -> bool:
        """Whether any weight of a tensor with these neurons (None: without) may be restored."""
        if self.shared is not None:
            return axis is not None and bool(self.shared.get(axis.layer, torch.zeros(1)).any())
        return axis is not None or not self.neurons_only

    def limit(self, axis: NeuronAxis | None, scores: Tensor) -> Tensor:
        """Scores of the tensor with 0 outside the region."""
        if not self.holds(axis):
            return torch.zeros_like(scores)
        if self.shared is None or axis is None:
            return scores
        return scores * spread(self.shared[axis.layer], axis)


def spread(values_N: Tensor, axis: NeuronAxis) -> Tensor:
    """One value per neuron as a matrix of one row or column that broadcasts over the weight."""
    return values_N.repeat(axis.times).unsqueeze(1 - axis.dim)


def gather(weights: Tensor, axis: NeuronAxis) -> Tensor:
    """The sum of a weight's entries over each neuron: [N], float64."""
    return weights.sum(1 - axis.dim, dtype=torch.float64).view(axis.times, -1).sum(0)
