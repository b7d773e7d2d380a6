"""Controls of the conflict analysis: the same pipeline where no conflict can be.

Legend: G groups, Q pairs of domains, S splits of all domains, D domains, K splits of each.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis._chance import benjamini_hochberg
from counterpoint.diagnosis.conflict_analysis.noise import PairTests, pair_tests


@dataclass(frozen=True)
class Control:
    """What the pipeline finds in ``repeats`` draws of data without conflicts.

    ``kind`` is ``shuffled labels`` (every split gets a random domain's label: all domains are one mixture) or ``random
    signs`` (noise alone: the splits' deviations from their domain's mean, half of them turned around). ``tests`` counts
    groups x pairs over all repeats, ``conflicts`` and ``synergies`` those found after correction, and
    ``repeats_with_conflict`` the repeats with at least one. ``negative_share`` is the share of tests with
    ``p <= level`` and a negative product before correction; nominal is ``level / 2``.
    """

    kind: str
    repeats: int
    tests: int
    conflicts: int
    synergies: int
    repeats_with_conflict: int
    negative_share: float


def verdicts(tests: PairTests, level: float) -> Tensor:
    """-1 conflict, 1 synergy, 0 within noise [..., Q] int64: Benjamini-Hochberg over all p-values, sign of the product.

    The false discovery rate over groups x pairs is at most ``level``; where p-values are missing, 0.
    """
    known = tests.p_value.isfinite()
    rejected = torch.zeros_like(known)
    rejected[known] = torch.tensor(benjamini_hochberg(tests.p_value[known].tolist(), level), dtype=torch.bool)
    return torch.where(rejected, tests.product.sign(), 0).long()


def run_controls(gram_GSS: Tensor, num_domains: int, level: float, repeats: int, seed: int) -> tuple[Control, ...]:
    """Both controls, from the Gram of the splits alone; the random stream is private.

    For shuffled labels every domain's splits are first scaled to one mean square, so that none rules the mixture.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for kind, change in (("shuffled labels", shuffled), ("random signs", turned)):
        draws = [change(gram_GSS, num_domains, generator) for _ in range(repeats)]
        found.append(_count(kind, [pair_tests(draw, num_domains, level) for draw in draws], level))
    return tuple(found)


def shuffled(gram_SS: Tensor, num_domains: int, generator: torch.Generator) -> Tensor:
    """The Gram [..., S, S] with the labels of all splits permuted, domains scaled to one mean square before."""
    square_S = gram_SS.double().diagonal(dim1=-2, dim2=-1)
    square_D = square_S.unflatten(-1, (num_domains, -1)).mean(-1)
    scale_D = torch.where(square_D > 0, square_D.rsqrt(), 0)
    scale_S = scale_D.repeat_interleave(square_S.shape[-1] // num_domains, dim=-1)
    scaled_SS = gram_SS * scale_S.unsqueeze(-1) * scale_S.unsqueeze(-2)
    order = torch.randperm(square_S.shape[-1], generator=generator)
    return scaled_SS[..., order, :][..., order]


def turned(gram_SS: Tensor, num_domains: int, generator: torch.Generator) -> Tensor:
    """The Gram [..., S, S] of noise alone: deviations from each domain's mean, half of them, at random, turned around.

    Deviations are widened by ``sqrt(K / (K - 1))`` to the variance they were drawn with.
    """
    K = gram_SS.shape[-1] // num_domains
    centre_KK = (torch.eye(K, dtype=torch.float64) - 1 / K) * math.sqrt(K / (K - 1))
    centre_SS = torch.block_diag(*[centre_KK] * num_domains)
    gram_SS = centre_SS @ gram_SS.double() @ centre_SS
    ranks = torch.stack([torch.randperm(K, generator=generator) for _ in range(num_domains)])
    sign_S = torch.where(ranks < K // 2, -1.0, 1.0).double().flatten()
    return gram_SS * sign_S.unsqueeze(-1) * sign_S


def _count(kind: str, draws: list[PairTests], level: float) -> Control:
    found = [verdicts(tests, level) for tests in draws]
    tests = sum(int(draw.p_value.isfinite().sum()) for draw in draws)
    negative = sum(int(((draw.p_value <= level) & (draw.product < 0)).sum()) for draw in draws)
    return Control(
        kind,
        len(draws),
        tests,
        sum(int((verdict < 0).sum()) for verdict in found),
        sum(int((verdict > 0).sum()) for verdict in found),
        sum(bool((verdict < 0).any()) for verdict in found),
        negative / tests if tests else float("nan"),
    )
