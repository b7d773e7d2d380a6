"""PCGrad on averaged conflicts: whether and how far two domains conflict is decided over steps, not in one.

Cosines are averaged, and brought to the scale of this step by this step's norms:

    K'[i, j] = average(cos_ij) ||g_i|| ||g_j||,     K'[i, i] = ||g_i||²

and PCGrad's weights follow from ``K'``. Cosines rather than Grams, because gradient norms change from step to step by
more than cosines do: in an average of Grams the steps with long gradients would outvote all others, and the weights
must fit the lengths of the gradients they multiply.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import doc
from torch import Tensor

from ..gram import cosines, scales
from .averages import Decay, PairAverages
from .base import Context, Weighting
from .pcgrad import pcgrad
from .protect import Protect, Protection


class EMAPCGrad(Weighting):
    """PCGrad on cosines that are averaged over steps.

    The average of a pair takes in the steps that hold both domains with gradients in the group, this one included; it
    is divided by the sum of its weights, so that the first steps count in full. A step whose own Gram has a conflict
    keeps the plain sum where no average is negative. The others give way to protected domains as far as ``K'`` tells.
    """

    name = "ema"
    strategies = (("mgs-ema", "module", "Modular Gradient Surgery on averaged conflicts"),)
    protects = True

    def __init__(
        self,
        decay: Annotated[
            Decay, doc("Weight of a step against the next one; 0.9 is about ten steps, 0 is PCGrad.")
        ] = 0.9,
        protect: Protect = (),
    ) -> None:
        self._averages = PairAverages(decay, width=1)
        self._protection = Protection(protect)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64; exactly 1 in every group without an averaged conflict."""
        scale_GDD = scales(gram_GDD)
        pairs_GDD = (scale_GDD > 0) & ~torch.eye(context.num_domains, dtype=torch.bool)
        self._averages.update(context, cosines(gram_GDD).unsqueeze(-1), pairs_GDD)
        cosines_GDDC, _ = self._averages.read(context)
        smooth_GDD = torch.where(pairs_GDD, cosines_GDDC.squeeze(-1) * scale_GDD, gram_GDD)
        return pcgrad(smooth_GDD, context, protected_D=self._protection.among(context))

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self._averages.state_dict(), "protect": self._protection.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages.load_state_dict(state["averages"])
        self._protection.load_state_dict(state["protect"])
