"""What a Gram tells: cosines, conflicts, and how much of the update surgery removed.

A Gram ``gram_GDD`` [G, D, D] holds for each group the inner products of the D domain gradients, in float64.
Everything here is a pure function of Grams and weights; no gradient is needed again.
"""

import math

import torch
from torch import Tensor


def norms(gram_GDD: Tensor) -> Tensor:
    """Lengths [G, D] of the domain gradients."""
    return gram_GDD.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def scales(gram_GDD: Tensor) -> Tensor:
    """Products [G, D, D] of the lengths of two domain gradients: what a cosine is multiplied with."""
    norm_GD = norms(gram_GDD)
    return norm_GD.unsqueeze(-1) * norm_GD.unsqueeze(-2)


def cosines(gram_GDD: Tensor) -> Tensor:
    """Cosines [G, D, D] between domain gradients; NaN where one of the two gradients is zero."""
    scale_GDD = scales(gram_GDD)
    return torch.where(scale_GDD > 0, gram_GDD / scale_GDD, torch.nan).clamp(-1, 1)


def conflicts(gram_GDD: Tensor) -> Tensor:
    """True [G, D, D] where two domains' gradients have a negative inner product; never on the diagonal."""
    return gram_GDD < 0


def conflict_rate(gram_GDD: Tensor) -> float:
    """The share, between 0 and 1, of (group, domain pair) combinations in conflict.

    Pairs of which a domain has no gradient in the group are left out; NaN where no pair is left.
    """
    live_GD = gram_GDD.diagonal(dim1=-2, dim2=-1) > 0
    num_live_G = live_GD.sum(-1)
    num_pairs = (num_live_G * (num_live_G - 1)).sum().item()
    return conflicts(gram_GDD).sum().item() / num_pairs if num_pairs else math.nan


def removed_share(gram_GDD: Tensor, weights_GD: Tensor) -> float:
    """``||sum - combined|| / ||sum||`` over all groups: how far surgery moved the update from the plain sum.

    With r = 1 - w the removed part of a group is ``sum_d r_d g_d``, whose squared norm is ``r' K r`` for its Gram K.
    0 where the plain sum itself is zero, and where every weight is 1.
    """
    removed_GD = 1 - weights_GD
    if not removed_GD.any():
        return 0.0
    removed = torch.einsum("gi,gij,gj->", removed_GD, gram_GDD, removed_GD).clamp(min=0)
    total = gram_GDD.sum().clamp(min=0)
    return (removed / total).sqrt().item() if total > 0 else 0.0


def contributions(gram_GDD: Tensor, weights_GD: Tensor) -> Tensor:
    """The part [D] of each domain in the squared norm of the update ``u``: ``<w_d g_d, u> / <u, u>``.

    They sum to 1; that of a domain which the update goes against is negative. NaN where the update is zero.
    """
    with_update_D = torch.einsum("gi,gij,gj->i", weights_GD, gram_GDD, weights_GD)
    total = with_update_D.sum()
    return with_update_D / total if total > 0 else torch.full_like(with_update_D, torch.nan)
