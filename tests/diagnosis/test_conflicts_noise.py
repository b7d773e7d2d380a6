"""Statistics of noisy gradients: against tables, brute force and simulations whose truth is known."""

import math

import pytest
import torch

from conflicts_helpers import Planted
from counterpoint.diagnosis._split_tests import pair_tests, split_half, squared_norms
from counterpoint.stats import student_quantile


def gram_of(*splits_KE):
    flat = torch.cat(splits_KE)
    return flat @ flat.T


def draws(count, dim, splits, signal, cosine, seed=0):
    """Grams [count, 2K, 2K] of two domains whose true gradients have norm ``signal`` and this cosine; unit noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 2, splits, dim, generator=generator, dtype=torch.float64) / math.sqrt(dim)
    noise[:, 0, :, 0] += signal
    noise[:, 1, :, 0] += signal * cosine
    noise[:, 1, :, 1] += signal * math.sqrt(1 - cosine**2)
    flat = noise.flatten(1, 2)
    return flat @ flat.transpose(1, 2)


def test_numbers_against_brute_force():
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(5, 7, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    found = pair_tests(gram_of(a, b), 2)
    mean_a, mean_b = a.mean(0), b.mean(0)
    assert found.product.item() == pytest.approx(float(mean_a @ mean_b))
    assert found.cosine.item() == pytest.approx(float(torch.cosine_similarity(mean_a, mean_b, dim=0)))
    cross = sum(float(a[k] @ a[j]) for k in range(5) for j in range(5) if k != j) / 20
    assert squared_norms(gram_of(a)).item() == pytest.approx(cross)
    halves = [torch.randperm(4, generator=generator)[:2] for _ in range(600)]
    products, squares = 0.0, 0.0
    for half in halves:
        other = torch.tensor([k for k in range(4) if k not in half])
        products += float(a[half].mean(0) @ a[other].mean(0))
        squares += float(a[half].mean(0).square().sum() + a[other].mean(0).square().sum()) / 2
    assert split_half(gram_of(a[:4])).item() == pytest.approx(products / squares, abs=0.03)


def test_the_standard_error_is_the_spread_over_many_experiments():
    found = pair_tests(draws(3000, 60, 8, signal=0.6, cosine=0.3), 2)
    assert float(found.standard_error.mean()) == pytest.approx(float(found.product.std()), rel=0.15)


@pytest.mark.parametrize("cosine", [-0.7, 0.0, 0.4])
def test_the_debiased_cosine_is_unbiased_where_the_plain_one_is_attenuated(cosine):
    found = pair_tests(draws(2000, 300, 16, signal=0.5, cosine=cosine), 2)
    known = found.debiased.isfinite()
    assert known.double().mean() > 0.99
    assert float(found.debiased[known].mean()) == pytest.approx(cosine, abs=0.01)
    covered = (found.low <= cosine) & (cosine <= found.high)
    assert 0.93 <= float(covered[known].double().mean()) <= 0.995
    if cosine:
        assert abs(float(found.cosine.mean())) < 0.85 * abs(cosine)


def test_the_interval_is_as_wide_as_the_debiased_cosine_spreads():
    # near 1 the noise of the product and of the norms cancel in part: an error of the product alone would be too large
    found = pair_tests(draws(3000, 20, 16, signal=3.0, cosine=0.95), 2)
    errors = (found.high - found.low) / 2 / student_quantile(0.975, 15)
    assert float(errors.mean()) == pytest.approx(float(found.debiased.std()), rel=0.1)


@pytest.mark.parametrize(("dim", "signal"), [(2, 0.0), (30, 0.0), (30, 0.5), (300, 0.0), (300, 0.3), (300, 2.0)])
def test_orthogonal_domains_are_rejected_no_more_often_than_the_level(dim, signal):
    found = pair_tests(draws(2000, dim, 8, signal=signal, cosine=0.0, seed=dim), 2)
    assert float((found.p_value <= 0.05).double().mean()) <= 0.055
    assert float((found.p_value <= 0.005).double().mean()) <= 0.01
    assert float((found.cosine.abs() > found.floor).double().mean()) <= 0.055, "the noise floor is what the test says"


def test_a_gradient_lost_in_noise_has_no_debiased_cosine_and_a_zero_one_has_none_at_all():
    lost = pair_tests(draws(300, 300, 8, signal=0.0, cosine=0.0), 2)
    assert float(lost.debiased.isnan().double().mean()) > 0.9
    zero = torch.zeros(6, 3, dtype=torch.float64)
    found = pair_tests(gram_of(zero, torch.ones_like(zero)), 2)
    assert all(value.isnan().all() for value in (found.cosine, found.p_value, found.floor, found.debiased))


def test_a_source_gives_the_same_gradient_twice():
    first, second = (Planted().gradients(0, 3, ["model.layers.0.mlp.up_proj.weight"]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
