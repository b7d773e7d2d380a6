"""What becomes of a cosine between two domains where each rank files the gradient of all ranks under its own domain.

Gradients are reduced in every backward pass, so each is the mean over the ranks' micro-batches. A rank that files it
under the domain of its own micro-batch files, with 8 ranks, 1/8 of that domain and 7/8 of whatever the others had. The
two buffers then hold nearly the same, and their cosine tells almost nothing of the domains.
"""

import math

import pytest
import torch

RANKS, SAMPLES, SIZE = 8, 64, 8192
"""Ranks, micro-batches of each, half of each domain in an order of its own, and parameters."""
NOISE = 8.4
"""Size of a sample's noise over that of its domain's gradient: one completion tells little."""


@pytest.mark.parametrize(("true", "each", "by_domain"), [(0.0, 0.62, 0.0), (-0.5, 0.43, -0.39), (-0.9, 0.09, -0.70)])
def test_with_eight_ranks_a_mixture_hides_conflicts(true, each, by_domain):
    generator = torch.Generator().manual_seed(0)
    basis_2P = torch.linalg.qr(torch.randn(SIZE, 2, generator=generator, dtype=torch.float64)).Q.T
    second_2 = torch.tensor([true, math.sqrt(1 - true**2)], dtype=torch.float64)
    means_DP = torch.stack([basis_2P[0], second_2 @ basis_2P])
    domain_RS = torch.stack([torch.randperm(SAMPLES, generator=generator) % 2 for _ in range(RANKS)])
    noise_RSP = torch.randn(RANKS, SAMPLES, SIZE, generator=generator) * (NOISE / math.sqrt(SIZE))
    samples_RSP = means_DP.float()[domain_RS] + noise_RSP
    reduced_SP = samples_RSP.mean(0)
    filed = [cosine(reduced_SP[domain_S == 0].sum(0), reduced_SP[domain_S == 1].sum(0)) for domain_S in domain_RS]
    assert sum(filed) / RANKS == pytest.approx(each, abs=0.02)
    found = cosine(samples_RSP[domain_RS == 0].sum(0), samples_RSP[domain_RS == 1].sum(0))
    assert found == pytest.approx(by_domain, abs=0.02)


def cosine(first_P, second_P):
    return torch.nn.functional.cosine_similarity(first_P, second_P, dim=0).item()
