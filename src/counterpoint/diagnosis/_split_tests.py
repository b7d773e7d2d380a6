"""What sampling noise does to inner products of gradients: tests, noise floors, cosines without attenuation.

Everything is a pure function of Grams over independent splits of the data. Domain a has K split gradients ``A_k``, each
an independent unbiased estimate of the domain's true gradient, and so has b. Legend: ``...`` any leading axes (groups),
D domains, Q pairs of domains, K splits of each domain, S = D * K, splits of one domain next to each other.
"""

from dataclasses import dataclass

import torch
from scipy.special import stdtr
from torch import Tensor

from counterpoint.diagnosis._chance import pairs_of
from counterpoint.series import benjamini_hochberg
from counterpoint.stats import student_quantile

LOWEST_SPLITS = 4
"""Fewer leave no degrees of freedom for a test that could reject anything."""


@dataclass(frozen=True)
class PairTests:
    """What the splits say about every pair of domains; all [..., Q] in float64.

    ``product`` is ``<mean A, mean B>``, unbiased for the inner product of the true gradients, and
    ``standard_error`` is its own; ``p_value`` is two-sided. ``cosine`` is that of the means; where nothing relates two
    domains it stays within ``floor`` in all but a share ``level`` of cases. ``debiased`` with ``low`` and ``high``
    (``1 - level`` interval) is the cosine without attenuation; NaN where either gradient is lost in noise. Where a
    gradient is zero, cosine and p-value are NaN too.
    """

    product: Tensor
    standard_error: Tensor
    p_value: Tensor
    cosine: Tensor
    floor: Tensor
    debiased: Tensor
    low: Tensor
    high: Tensor


def split_blocks(gram_SS: Tensor, num_domains: int) -> Tensor:
    """[..., S, S] as [..., D, D, K, K] in float64."""
    K = gram_SS.shape[-1] // num_domains
    return gram_SS.double().unflatten(-1, (num_domains, K)).unflatten(-3, (num_domains, K)).transpose(-3, -2)


def pair_tests(gram_SS: Tensor, num_domains: int, level: float = 0.05) -> PairTests:
    """Tests and cosines of all pairs from the Gram of the splits [..., S, S].

    The products ``X_kl = <A_k, B_l>`` are a two-way layout without repetition, ``X_kl = m + a_k + b_l + e_kl``, whose
    parts are uncorrelated because the splits are independent. With its mean squares (rows, columns, rest) the variance
    of the mean is ``(MS_a + MS_b - MS_e) / K^2``, unbiased (Searle, Casella and McCulloch, Variance Components, 1992).
    It is never taken below the largest single mean square, which makes the test conservative where noise rules. The
    mean over its standard error is compared with Student's t of K - 1 degrees of freedom.
    """
    blocks = split_blocks(gram_SS, num_domains)
    first, second = (torch.tensor(side) for side in zip(*pairs_of(num_domains), strict=True))
    product_KK = blocks.flatten(-4, -3)[..., first * num_domains + second, :, :]
    own_KK = blocks.diagonal(dim1=-4, dim2=-3).movedim(-1, -3)
    K = product_KK.shape[-1]
    product = product_KK.mean((-2, -1))
    error = _standard_error(product_KK)
    norm = own_KK.mean((-2, -1)).clamp(min=0).sqrt()
    scale = norm[..., first] * norm[..., second]
    live = scale > 0
    nan = torch.full_like(product, torch.nan)
    cosine = torch.where(live, product / scale, nan).clamp(-1, 1)
    debiased, debiased_error = _debiased(product_KK, own_KK, first, second)
    quantile = student_quantile(1 - level / 2, K - 1)
    reach = quantile * debiased_error
    return PairTests(
        product,
        error,
        torch.where(live & (error > 0), _p_value(product / error, K - 1), nan),
        cosine,
        torch.where(live, quantile * error / scale, nan),
        debiased,
        debiased - reach,
        debiased + reach,
    )


def _standard_error(product_KK: Tensor) -> Tensor:
    K = product_KK.shape[-1]
    mean = product_KK.mean((-2, -1), keepdim=True)
    row, column = product_KK.mean(-1, keepdim=True) - mean, product_KK.mean(-2, keepdim=True) - mean
    rest = product_KK - mean - row - column
    ms_row, ms_column = (K * part.square().sum((-2, -1)) / (K - 1) for part in (row, column))
    ms_rest = rest.square().sum((-2, -1)) / (K - 1) ** 2
    largest = torch.maximum(torch.maximum(ms_row, ms_column), ms_rest)
    return torch.maximum(ms_row + ms_column - ms_rest, largest).sqrt() / K


def squared_norms(own_KK: Tensor) -> Tensor:
    """``|true gradient|^2`` [...] from a domain's own products [..., K, K]: the mean of ``<A_k, A_l>`` over k != l.

    Unbiased, as both factors are independent; it may therefore be negative where noise rules.
    """
    K = own_KK.shape[-1]
    return (own_KK.sum((-2, -1)) - own_KK.diagonal(dim1=-2, dim2=-1).sum(-1)) / (K * (K - 1))


def split_half(own_KK: Tensor) -> Tensor:
    """Cosine [...] between two halves of one domain's splits: what agreement noise leaves to a domain with itself.

    ``s / (s + 2 n / K)`` with the unbiased squared norm s and the noise of one split ``n = mean |A_k|^2 - s``: the mean
    product over all ways to halve, over the mean squared norm of a half.
    """
    K = own_KK.shape[-1]
    signal = squared_norms(own_KK)
    noise = own_KK.diagonal(dim1=-2, dim2=-1).mean(-1) - signal
    whole = signal + 2 * noise / K
    return torch.where(whole > 0, signal / whole, torch.full_like(signal, torch.nan))


def _debiased(product_KK: Tensor, own_KK: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """``<a, b> / sqrt(|a|^2 |b|^2)`` from unbiased estimates of all three, and its jackknife standard error.

    Spearman's correction for attenuation. NaN unless both squared norms exceed two of their own standard errors.
    """
    K = own_KK.shape[-1]
    signal = squared_norms(own_KK)
    others = (own_KK.sum(-1) - own_KK.diagonal(dim1=-2, dim2=-1)) / (K - 1) - signal.unsqueeze(-1)
    known = (signal > 0) & (signal > 4 * (others.square().sum(-1) / (K * (K - 1))).sqrt())
    scale = (signal[..., first] * signal[..., second]).clamp(min=0).sqrt()
    mean = product_KK.mean((-2, -1))
    cosine = mean / scale
    # influence of one split: its part of the numerator less its part of the denominator, to first order
    pull_a = (product_KK.mean(-1) - mean.unsqueeze(-1)) / scale.unsqueeze(-1)
    pull_a = pull_a - (cosine / signal[..., first]).unsqueeze(-1) * others[..., first, :]
    pull_b = (product_KK.mean(-2) - mean.unsqueeze(-1)) / scale.unsqueeze(-1)
    pull_b = pull_b - (cosine / signal[..., second]).unsqueeze(-1) * others[..., second, :]
    error = ((pull_a.square().sum(-1) + pull_b.square().sum(-1)) / (K * (K - 1))).sqrt()
    usable = known[..., first] & known[..., second]
    nan = torch.full_like(cosine, torch.nan)
    return torch.where(usable, cosine, nan), torch.where(usable, error, nan)


def _p_value(t: Tensor, degrees: int) -> Tensor:
    """Two-sided p-value of Student's t, elementwise in float64."""
    return torch.from_numpy(2 * stdtr(degrees, -t.abs().double().numpy()))


def verdicts(tests: PairTests, level: float) -> Tensor:
    """-1 conflict, 1 synergy, 0 within noise [..., Q] int64: Benjamini-Hochberg over all p-values, sign of the product.

    The false discovery rate over groups x pairs is at most ``level`` where the tests are independent or positively
    dependent; 0 where a p-value is missing.
    """
    known = tests.p_value.isfinite()
    rejected = torch.zeros_like(known)
    rejected[known] = torch.tensor(benjamini_hochberg(tests.p_value[known].tolist(), level), dtype=torch.bool)
    return torch.where(rejected, tests.product.sign(), 0).long()
