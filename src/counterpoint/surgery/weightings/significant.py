"""PCGrad against significant conflicts alone: those that exceed what sampling noise explains.

Every domain's gradient is the sum of two parts, ``A = a1 + a2``, of n1 and n2 micro-batches. The contrast

    A~ = sqrt(n2 / n1) a1 - sqrt(n1 / n2) a2

has mean zero and exactly the noise of A. For two domains A and B that are sampled independently,

    Var(A . B) = E (A . B~)² + E (A~ . B)² - E (A~ . B~)²

and each of the three squares is seen in every step. They are divided by ``||A||² ||B||²``, which gives the variance of
the cosine, and averaged over steps. ``significant`` compares the cosine with what its averaged variance allows.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Gt, Lt, doc
from torch import Tensor

from ...errors import StrategyError
from ..gram import cosines, scales
from .averages import Decay, PairAverages
from .base import PATIENCE, Context, Halves, Weighting
from .pcgrad import pcgrad
from .protect import Protect, Protection


class SignificantPCGrad(Weighting):
    """PCGrad against conflicts that exceed their noise.

    A pair counts where ``cos < -t sqrt(variance)``, t being the quantile of Student's distribution for as many degrees
    of freedom as the average is worth steps. A pair never seen with both halves of both domains is never projected.
    The others give way to those protected domains with which they are in significant conflict.

    Raises ``StrategyError`` without ``context.halves``, and where no pair of domains had both halves in the first 50
    steps.
    """

    name = "significant"
    strategies = (("mgs-significant", "module", "Modular Gradient Surgery against significant conflicts alone"),)
    uses_halves = protects = True

    def __init__(
        self,
        level: Annotated[
            float, Gt(0), Lt(0.5), doc("Share of pairs without conflict that may be projected by chance.")
        ] = 0.05,
        decay: Annotated[
            Decay, doc("Weight of a step's noise against the next one's; 0.95 is about twenty steps.")
        ] = 0.95,
        protect: Protect = (),
    ) -> None:
        self._level = level
        self._averages = PairAverages(decay, width=2)
        self._protection = Protection(protect)
        self._steps = 0

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64; exactly 1 in every group without a significant conflict."""
        if context.halves is None:
            raise StrategyError(
                "The weighting 'significant' needs the gradients in two halves, and the context holds none: use it in "
                "a Surgeon, or give Context(halves=...)."
            )
        self._averages.update(context, *noise_squares(gram_GDD, context.halves))
        self._steps += 1
        if self._steps >= PATIENCE and self._averages.empty:
            raise StrategyError(
                f"In none of {self._steps} steps were two domains collected at least twice each, so their noise is "
                "unknown and nothing was projected: collect two or more micro-batches of every domain before combine()."
            )
        counts_GDD = cosines(gram_GDD) < -self.noise_floor(context)
        return pcgrad(gram_GDD, context, counts_GDD, self._protection.among(context))

    def noise_floor(self, context: Context) -> Tensor:
        """[G, D, D]: how far below zero a cosine must be to be a conflict; infinite where nothing is known."""
        squares_GDDC, steps_GDD = self._averages.read(context)
        deviation_GDD = variances(squares_GDDC).sqrt()
        floor_GDD = student_quantile(self._level, steps_GDD.clamp(min=1)) * deviation_GDD
        return torch.where(steps_GDD > 0, floor_GDD, torch.inf)

    def state_dict(self) -> dict[str, Any]:
        averages, protect = self._averages.state_dict(), self._protection.state_dict()
        return {"averages": averages, "protect": protect, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._averages.load_state_dict(state["averages"])
        self._protection.load_state_dict(state["protect"])
        self._steps = state["steps"]


def noise_squares(gram_GDD: Tensor, halves: Halves) -> tuple[Tensor, Tensor]:
    """``(A_i . A~_j)²`` and ``(A~_i . A~_j)²`` over ``||A_i||² ||A_j||²`` in this step, [G, D, D, 2], and where known.

    Known, [G, D, D], between different domains that were collected in both halves and have a gradient.
    """
    num_domains = gram_GDD.shape[1]
    counts_D2 = halves.counts_D2.double()
    both_D = (counts_D2 > 0).all(1)
    ratio_D = (counts_D2[:, 1] / counts_D2[:, 0].clamp(min=1)).sqrt()
    signs_D2 = torch.stack([ratio_D, -1 / ratio_D.where(both_D, 1.0)], dim=1).where(both_D.unsqueeze(1), 0.0)
    identity_DD = torch.eye(num_domains, dtype=torch.float64)
    whole_DV = identity_DD.repeat_interleave(2, dim=1)
    contrast_DV = whole_DV * signs_D2.reshape(1, -1)
    scale_GDD = scales(gram_GDD)
    valid_GDD = (scale_GDD > 0) & both_D & both_D.unsqueeze(1) & (identity_DD == 0)
    right_GVD = halves.gram_GVV @ contrast_DV.T
    products_GDDC = torch.stack([whole_DV @ right_GVD, contrast_DV @ right_GVD], dim=-1)
    return (products_GDDC / scale_GDD.where(valid_GDD, 1.0).unsqueeze(-1)) ** 2, valid_GDD


def variances(squares_GDDC: Tensor) -> Tensor:
    """Variances [G, D, D] of the cosines from averaged squares [G, D, D, 2]: ``q_ij + q_ji - min(q_ij, q_ji, r_ij)``.

    In expectation ``r`` is the smallest of the three, so the minimum only takes away what chance added to ``r``. It
    keeps the variance from becoming small or negative by chance, where every noise would count as a conflict.
    """
    one_GDD, contrasts_GDD = squares_GDDC.unbind(-1)
    other_GDD = one_GDD.transpose(1, 2)
    return one_GDD + other_GDD - torch.minimum(torch.minimum(one_GDD, other_GDD), contrasts_GDD)


def student_quantile(level: float, freedom: Tensor) -> Tensor:
    """The value that a variable of Student's distribution exceeds with the probability ``level``."""
    from scipy.special import stdtrit  # here, because importing counterpoint.surgery needs torch alone

    return torch.as_tensor(stdtrit(freedom.numpy(), 1 - level))
