"""Static scalarisation: the loss of every domain counts by a fixed factor, whatever the gradients say.

The gradient of ``sum_d w_d L_d`` is ``sum_d w_d g_d``, so fixed weights of the gradients are fixed weights of the
losses. With weights well chosen it is a baseline hard to beat: Derrick Xin, Behrooz Ghorbani, Ankush Garg, Orhan Firat,
Justin Gilmer, Do Current Multi-Task Optimization Methods in Deep Learning Even Help?, 2022 (arXiv 2209.11379).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import StrategyError
from .base import Context, NamedDomains, Weighting


class StaticWeights(Weighting):
    """One fixed weight per domain, the same in every group and step.

    Arguments:
        weights: domain -> weight, a positive finite number; a domain without one has the weight 1.

    Raises ``StrategyError`` for anything else, and in use where a named domain is none of the first 50 steps'.
    """

    weighs_one = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping) or not weights:
            raise StrategyError(
                f"weights must be a mapping of domains to numbers, found {weights!r}: "
                "write it as {type: static, weights: {math: 2.0}}."
            )
        for name, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not isinstance(name, str) or not number or not (0 < weight < math.inf):
                raise StrategyError(f"weights gives {name!r} the weight {weight!r}: give a positive finite number.")
        self._weights = dict(weights)
        self._named = NamedDomains(weights, "weights names", "its weight does nothing")

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D], float64, for Grams [G, D, D] that are not looked at."""
        self._named.see(context)
        weights_D = torch.tensor([self._weights.get(name, 1.0) for name in context.domains], dtype=torch.float64)
        return weights_D.repeat(len(gram_GDD), 1)

    def state_dict(self) -> dict[str, Any]:
        return self._named.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._named.load_state_dict(state)
