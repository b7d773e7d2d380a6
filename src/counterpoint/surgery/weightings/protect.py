"""Protected domains: their own gradients stay as they are, and those of the others give way to them.

With the protected gradients ``g_p``, what is left of an unprotected domain is the nearest vector to its ``x`` in

    C = {y : y . g_p >= 0 for every protected p}

namely ``x + sum_p m_p g_p`` with ``m >= 0`` and, for every p, ``m_p = 0`` or ``y . g_p = 0``. Only the Gram is needed.
With at most seven protected domains every set of those with ``m_p > 0`` can be tried, so the answer is exact.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Annotated

import torch
from annotated_types import doc
from torch import Tensor

from ...registry import Domain, Rule
from ..gram import cosines, norms
from .base import Context, NamedDomains

_MAX_PROTECTED = 7
"""Every set of protected domains is tried, so their number is limited."""

_ROUNDING = 1e-6
"""Below this, a negative cosine is float32 noise. Correcting it between nearly opposite gradients would need huge
weights and lose more precision than it gains."""


def _can_be_protected(names: Sequence[str], domains: Collection[str] | None) -> None:
    if len(names) > _MAX_PROTECTED or len(set(names)) < len(names):
        raise ValueError(f"lists {len(names)} domains. Give at most {_MAX_PROTECTED}, each of them once.")
    if domains and set(domains) <= set(names):
        raise ValueError("lists every domain, so that none is left to give way. Leave one out, or use `mixed`.")


Protect = Annotated[
    Sequence[Domain], Rule(_can_be_protected), doc("Domains whose gradients are never altered; the others give way.")
]
"""The type of the option ``protect``."""


class Protection(NamedDomains):
    """The protected domains; none protects nothing."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        super().__init__(names, "protect lists", "it protects nothing")

    def among(self, context: Context) -> Tensor:
        """True [D] for the protected among the domains of this step; one call per step."""
        self.see(context)
        return torch.tensor([domain in self.names for domain in context.domains])


def give_way(coefficients_GDD: Tensor, gram_GDD: Tensor, counts_GDD: Tensor, protected_D: Tensor) -> Tensor:
    """Coefficients [G, D, D] after every unprotected domain's part is projected onto its cone.

    Row ``[g, i]`` says which combination of the original gradients is domain i's part of the update. It gives way to
    the protected domains p with ``counts_GDD[g, i, p]``; rows of protected domains stay.
    """
    own_M = protected_D.nonzero().flatten()
    norm_GD = norms(gram_GDD)
    size_GD = (coefficients_GDD.abs() * norm_GD.unsqueeze(1)).sum(-1)
    scale_GDM = size_GD.unsqueeze(-1) * norm_GD[:, None, own_M]
    held_GDM = counts_GDD[:, :, own_M] & ~protected_D[None, :, None] & (scale_GDM > 0)
    inner_GDM = coefficients_GDD @ gram_GDD[:, :, own_M]
    cosine_GDM = torch.where(held_GDM, inner_GDM / scale_GDM, torch.zeros_like(inner_GDM))
    rows_G, rows_D = (cosine_GDM < 0).any(-1).nonzero(as_tuple=True)
    if not rows_G.numel():
        return coefficients_GDD
    held_NM = held_GDM[rows_G, rows_D]
    both_NMM = held_NM.unsqueeze(1) & held_NM.unsqueeze(2)
    correlation_NMM = torch.where(both_NMM, cosines(gram_GDD)[rows_G][:, own_M][:, :, own_M], 0.0)
    correlation_NMM.diagonal(dim1=1, dim2=2).fill_(1.0)
    multipliers_NM = cone_multipliers(correlation_NMM, cosine_GDM[rows_G, rows_D])
    steps_NM = multipliers_NM * size_GD[rows_G, rows_D].unsqueeze(-1) / norm_GD[rows_G][:, own_M]
    result_GDD = coefficients_GDD.clone()
    result_GDD[rows_G.unsqueeze(1), rows_D.unsqueeze(1), own_M] += torch.where(held_NM, steps_NM, 0.0)
    return result_GDD


def cone_multipliers(correlation_NMM: Tensor, cosine_NM: Tensor) -> Tensor:
    """The ``m >= 0`` [N, M] with which ``x + sum_p m_p u_p`` is the nearest vector to x with ``y . u_p >= 0``.

    ``correlation_NMM`` holds the inner products of the unit vectors ``u_p``, ``cosine_NM`` those of x with them, a
    negative one in every row. Smaller active sets come first, so linearly dependent ``u_p`` do no harm.
    """
    best_N = torch.full(cosine_NM.shape[:1], torch.inf, dtype=cosine_NM.dtype)
    multipliers_NM = torch.zeros_like(cosine_NM)
    everyone = range(cosine_NM.shape[1])
    for active in (list(chosen) for size in everyone for chosen in itertools.combinations(everyone, size + 1)):
        candidate_NM = torch.zeros_like(cosine_NM)
        block_NSS = correlation_NMM[:, active][:, :, active]
        candidate_NM[:, active] = torch.linalg.solve_ex(block_NSS, -cosine_NM[:, active])[0]
        slack_NM = cosine_NM + (correlation_NMM @ candidate_NM.unsqueeze(-1)).squeeze(-1)
        violation_N = -torch.minimum(candidate_NM, slack_NM).amin(-1)
        better_N = (best_N > _ROUNDING) & (violation_N < best_N)  # false where a singular block gave no number
        best_N = torch.where(better_N, violation_N, best_N)
        multipliers_NM = torch.where(better_N.unsqueeze(-1), candidate_NM, multipliers_NM)
        if bool((best_N <= _ROUNDING).all()):
            break
    return multipliers_NM.clamp(min=0)
