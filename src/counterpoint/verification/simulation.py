"""What becomes of a cosine between two domains where each rank files the gradient of all ranks under its own domain.

Gradients are reduced in every backward pass, so each is the mean over the ranks' micro-batches. A rank that files it
under the domain of its own micro-batch files, with 8 ranks, 1/8 of that domain and 7/8 of whatever the others had. The
two buffers then hold nearly the same, and their cosine tells almost nothing of the domains.
"""

import math
from dataclasses import dataclass

import torch

RANKS = 8
SAMPLES = 64
"""Micro-batches per rank, half of each domain, in an order of its own."""
NOISE = 8.4
"""Size of a sample's noise over that of its domain's gradient: one completion tells little."""
SIZE = 8192
"""Number of parameters."""


@dataclass(frozen=True)
class Cosines:
    """The cosine of the two buffers."""

    by_each_rank: float
    """Where a rank files the mean over ranks under its own domain; the mean of all ranks' cosines."""
    by_domain: float
    """Where all samples of a domain go into its buffer."""


def filed_cosines(true_cosine: float, seed: int = 0) -> Cosines:
    """The cosines measured for two domains whose true gradients, of length 1, have this cosine. Deterministic."""
    generator = torch.Generator().manual_seed(seed)
    basis_2P = torch.linalg.qr(torch.randn(SIZE, 2, generator=generator, dtype=torch.float64)).Q.T
    second_2 = torch.tensor([true_cosine, math.sqrt(1 - true_cosine**2)], dtype=torch.float64)
    means_DP = torch.stack([basis_2P[0], second_2 @ basis_2P])
    order = [torch.randperm(SAMPLES, generator=generator) % 2 for _ in range(RANKS)]
    domain_RS = torch.stack(order)
    noise_RSP = torch.randn(RANKS, SAMPLES, SIZE, generator=generator) * (NOISE / math.sqrt(SIZE))
    samples_RSP = means_DP.float()[domain_RS] + noise_RSP
    reduced_SP = samples_RSP.mean(0)
    each = [_cosine(reduced_SP[domain_S == 0].sum(0), reduced_SP[domain_S == 1].sum(0)) for domain_S in domain_RS]
    by_domain = _cosine(samples_RSP[domain_RS == 0].sum(0), samples_RSP[domain_RS == 1].sum(0))
    return Cosines(sum(each) / RANKS, by_domain)


def _cosine(first_P: torch.Tensor, second_P: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(first_P, second_P, dim=0).item()
