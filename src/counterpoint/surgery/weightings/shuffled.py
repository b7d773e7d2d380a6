"""Shuffled PCGrad: the right weights in the wrong groups, the random control of modular surgery.

If surgery helps because each group is treated by its own conflicts, then the same weights, given to other groups, must
help less. They rescale domains exactly as often and as strongly as PCGrad does, so what they do as well as PCGrad comes
from the rescaling and not from where it happens.
"""

import torch
from torch import Tensor

from .base import Context, Weighting
from .pcgrad import pcgrad

_STREAM = "cycle of all groups"
"""Names the random numbers, as a group's name does elsewhere."""


class ShuffledPCGrad(Weighting):
    """A control: PCGrad's weights, every group with those of another group; one group keeps its own.

    A random cycle through all groups, drawn from (seed, step) alone, says whose weights a group gets.
    """

    name = "shuffled"
    strategies = (("mgs-shuffled", "module", "a control: the weights of `mgs` in the wrong modules"),)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64."""
        weights_GD = pcgrad(gram_GDD, context)
        order_G = random_cycle(context)
        result_GD = torch.empty_like(weights_GD)
        result_GD[order_G] = weights_GD[order_G.roll(1)]
        return result_GD


def random_cycle(context: Context) -> Tensor:
    """The numbers of all groups in random order, [G] int64; a group gets the weights of the one before it."""
    return context.draws([_STREAM], len(context.groups))[0].argsort()
