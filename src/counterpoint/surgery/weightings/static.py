"""Static scalarisation: the loss of every domain counts by a fixed factor, whatever the gradients say.

The gradient of ``sum_d w_d L_d`` is ``sum_d w_d g_d``, so fixed weights of the gradients are fixed weights of the
losses. With weights well chosen it is a baseline hard to beat: Derrick Xin, Behrooz Ghorbani, Ankush Garg, Orhan Firat,
Justin Gilmer, Do Current Multi-Task Optimization Methods in Deep Learning Even Help?, 2022 (arXiv 2209.11379).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt, MinLen, doc
from torch import Tensor

from ...registry import Domain
from .base import Context, NamedDomains, Weighting


class StaticWeights(Weighting):
    """One fixed weight per domain, the same in every group and step.

    Raises ``StrategyError`` where a domain with a weight is none of the first 50 steps'.
    """

    name, paper = "static", "2209.11379"
    weighs_one = True

    def __init__(
        self,
        weights: Annotated[
            Mapping[Domain, Annotated[float, Gt(0), Lt(math.inf)]],
            MinLen(1),
            doc("Domain and weight, as in {math: 2.0}; a domain without one has the weight 1."),
        ],
    ) -> None:
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
