"""PCGrad in Gram space.

Tianhe Yu, Saurabh Kumar, Abhishek Gupta, Sergey Levine, Karol Hausman, Chelsea Finn: Gradient Surgery for Multi-Task
Learning, 2020 (arXiv 2001.06782), algorithm 1:

    for every domain i:  p = g_i
        for every other domain j, in random order:
            if p . g_j < 0:  p = p - (p . g_j / ||g_j||^2) g_j        (the original g_j)
    update = sum of all p

Every p is a linear combination ``sum_k c_ik g_k``, so ``p . g_j = sum_k c_ik K_kj`` needs only the Gram K, and the
weight of domain k in the update is ``sum_i c_ik``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..gram import conflicts
from .base import Context, Weighting
from .protect import Protect, Protection, give_way


class PCGrad(Weighting):
    """A domain's gradient gives up what opposes another domain's.

    Protected domains keep theirs: every other domain is treated by PCGrad's rule among the unprotected ones and then
    projected onto the vectors that oppose no protected gradient.
    """

    name, paper = "pcgrad", "2001.06782"
    strategies = (
        ("mgs", "module", "Modular Gradient Surgery, arXiv 2602.02301"),
        ("mgs-tensor", "tensor", "the same on every parameter tensor, as the paper's public code does it"),
        ("pcgrad", "global", "PCGrad as published"),
    )
    protects = True

    def __init__(self, protect: Protect = ()) -> None:
        self._protection = Protection(protect)

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        """Weights [G, D] for Grams [G, D, D], both float64; exactly 1 in every group without conflict."""
        return pcgrad(gram_GDD, context, protected_D=self._protection.among(context))

    def state_dict(self) -> dict[str, Any]:
        return self._protection.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._protection.load_state_dict(state)


def pcgrad(
    gram_GDD: Tensor, context: Context, counts_GDD: Tensor | None = None, protected_D: Tensor | None = None
) -> Tensor:
    """PCGrad's weights [G, D], float64; exactly 1 in every group without conflict.

    A domain whose gradient is zero in a group neither changes nor is changed there.

    Arguments:
        counts_GDD: the pairs that may be projected, bool [G, D, D]; all of them by default.
        protected_D: the domains whose own gradients stay and to which the others give way, bool [D]; none by default.
    """
    weights_GD = torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
    counts_GDD = torch.ones_like(gram_GDD, dtype=torch.bool) if counts_GDD is None else counts_GDD
    rows = (conflicts(gram_GDD) & counts_GDD).any(-1).any(-1).nonzero().flatten()
    if not rows.numel():
        return weights_GD
    order_GDD = random_orders(context, [context.groups[row] for row in rows.tolist()])
    protected_D = torch.zeros(context.num_domains, dtype=torch.bool) if protected_D is None else protected_D
    free_D = ~protected_D
    gram_GDD, counts_GDD = gram_GDD[rows].double(), counts_GDD[rows]
    coefficients_GDD = project(gram_GDD, order_GDD, counts_GDD & free_D & free_D.unsqueeze(1))
    if protected_D.any():
        coefficients_GDD = give_way(coefficients_GDD, gram_GDD, counts_GDD, protected_D)
    weights_GD[rows] = coefficients_GDD.sum(1)
    return weights_GD


def project(gram_GDD: Tensor, order_GDD: Tensor, counts_GDD: Tensor) -> Tensor:
    """Coefficients [G, D, D]: row ``[g, i]`` makes ``p_i``, projected against the pairs that count.

    ``order_GDD[g, i]``, [G, D, D - 1], lists the others of domain i in the order in which they come.
    """
    num_groups, num_domains = gram_GDD.shape[:2]
    norm_GD = gram_GDD.diagonal(dim1=-2, dim2=-1)
    coefficients_GDD = torch.eye(num_domains, dtype=gram_GDD.dtype).repeat(num_groups, 1, 1)
    for other_GD in order_GDD.unbind(-1):
        # Row [g, i] of the gathered Gram holds the inner products of every original with domain i's current other.
        products_GDD = gram_GDD.gather(1, other_GD.unsqueeze(-1).expand_as(gram_GDD))
        inner_GD = (coefficients_GDD * products_GDD).sum(-1)
        square_GD = norm_GD.gather(1, other_GD)
        counts_GD = counts_GDD.gather(2, other_GD.unsqueeze(-1)).squeeze(-1)
        opposed_GD = counts_GD & (inner_GD < 0) & (square_GD > 0)
        step_GD = torch.where(opposed_GD, inner_GD / square_GD, torch.zeros_like(inner_GD))
        coefficients_GDD.scatter_add_(2, other_GD.unsqueeze(-1), -step_GD.unsqueeze(-1))
    return coefficients_GDD


def random_orders(context: Context, groups: Sequence[str]) -> Tensor:
    """For every group and domain the others in random order, [G, D, D - 1]."""
    number = context.num_domains
    draws_GDD = context.draws(groups, number * number).view(-1, number, number)
    draws_GDD.diagonal(dim1=1, dim2=2).fill_(torch.iinfo(torch.int64).max)  # oneself comes last, and is cut off
    return draws_GDD.argsort(dim=-1)[:, :, :-1]
