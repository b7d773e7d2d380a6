"""The plain sum, which every other weighting gives where nothing conflicts."""

import torch
from torch import Tensor

from .base import Context, Weighting


class Ones(Weighting):
    """The plain sum of the domain gradients."""

    name = "ones"
    strategies = (("mixed", "global", "plain training on all domains at once"),)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] of 1."""
        return torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
