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

import torch
from torch import Tensor

from .gram import conflicts
from .weighting import Context


def pcgrad(gram_GDD: Tensor, context: Context) -> Tensor:
    """PCGrad's weights [G, D], float64; exactly 1 in every group without conflict.

    A domain whose gradient is zero in a group neither changes nor is changed there.
    """
    weights_GD = torch.ones(gram_GDD.shape[:2], dtype=torch.float64)
    in_conflict_G = conflicts(gram_GDD).any(-1).any(-1)
    rows = in_conflict_G.nonzero().flatten()
    if rows.numel():
        names = [context.groups[row] for row in rows.tolist()]
        order_GDD = torch.stack([_orders(context.num_domains, context.generator(name)) for name in names])
        weights_GD[rows] = project(gram_GDD[rows].double(), order_GDD)
    return weights_GD


def project(gram_GDD: Tensor, order_GDD: Tensor) -> Tensor:
    """PCGrad's weights [G, D] for given orders: ``order_GDD[g, i]``, [G, D, D - 1], lists the others of domain i."""
    num_groups, num_domains = gram_GDD.shape[:2]
    norm_GD = gram_GDD.diagonal(dim1=-2, dim2=-1)
    coefficients_GDD = torch.eye(num_domains, dtype=gram_GDD.dtype).repeat(num_groups, 1, 1)
    for other_GD in order_GDD.unbind(-1):
        # Row [g, i] of the gathered Gram holds the inner products of every original with domain i's current other.
        products_GDD = gram_GDD.gather(1, other_GD.unsqueeze(-1).expand_as(gram_GDD))
        inner_GD = (coefficients_GDD * products_GDD).sum(-1)
        square_GD = norm_GD.gather(1, other_GD)
        step_GD = torch.where((inner_GD < 0) & (square_GD > 0), inner_GD / square_GD, torch.zeros_like(inner_GD))
        coefficients_GDD.scatter_add_(2, other_GD.unsqueeze(-1), -step_GD.unsqueeze(-1))
    return coefficients_GDD.sum(1)


def _orders(num_domains: int, generator: torch.Generator) -> Tensor:
    """For every domain the others in random order, [D, D - 1]."""
    draws_DD = torch.rand(num_domains, num_domains, generator=generator, dtype=torch.float64)
    draws_DD.fill_diagonal_(2.0)  # oneself comes last, and is cut off
    return draws_DD.argsort(dim=1)[:, :-1]
