"""What is read off Grams, against the same computed from vectors."""

import math

import pytest
import torch

from counterpoint.surgery import conflict_rate, cosines, removed_share
from counterpoint.surgery.gram import conflicts

GROUPS, DOMAINS, SIZE = 3, 4, 10


@pytest.fixture
def vectors_GDP() -> torch.Tensor:
    return torch.randn(GROUPS, DOMAINS, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_cosines(vectors_GDP):
    gram_GDD = vectors_GDP @ vectors_GDP.mT
    expected = torch.nn.functional.cosine_similarity(vectors_GDP[:, :, None], vectors_GDP[:, None], dim=-1)
    torch.testing.assert_close(cosines(gram_GDD), expected)


def test_cosine_with_a_zero_gradient_is_not_known(vectors_GDP):
    vectors_GDP[0, 1] = 0
    found = cosines(vectors_GDP @ vectors_GDP.mT)
    assert found[0, 1].isnan().all()
    assert found[0, :, 1].isnan().all()
    found[0, 1, :] = found[0, :, 1] = 0
    assert found.isfinite().all()


def test_conflict_rate():
    gram_GDD = torch.tensor([[[1.0, -0.1], [-0.1, 1.0]], [[1.0, 0.1], [0.1, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    assert conflict_rate(gram_GDD) == pytest.approx(1 / 3)
    assert conflicts(gram_GDD).sum() == 2
    assert math.isnan(conflict_rate(gram_GDD[:, :1, :1]))


def test_removed_share(vectors_GDP):
    weights_GD = torch.rand(GROUPS, DOMAINS, dtype=torch.float64)
    plain = vectors_GDP.sum(1)
    combined = (weights_GD.unsqueeze(-1) * vectors_GDP).sum(1)
    expected = ((plain - combined).norm() / plain.norm()).item()
    assert removed_share(vectors_GDP @ vectors_GDP.mT, weights_GD) == pytest.approx(expected, rel=1e-12)


def test_domains_without_a_gradient_are_left_out_of_the_conflict_rate():
    gram_GDD = torch.tensor([[[1.0, -0.5, 0], [-0.5, 1, 0], [0, 0, 0]], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]])
    assert conflict_rate(gram_GDD) == 0.5
    assert math.isnan(conflict_rate(torch.zeros(2, 3, 3)))


def test_nothing_is_removed_by_ones(vectors_GDP):
    gram_GDD = vectors_GDP @ vectors_GDP.mT
    assert removed_share(gram_GDD, torch.ones(GROUPS, DOMAINS, dtype=torch.float64)) == 0.0
    assert removed_share(gram_GDD.fill_(float("nan")), torch.ones(GROUPS, DOMAINS, dtype=torch.float64)) == 0.0
    assert removed_share(torch.zeros(1, 2, 2), torch.zeros(1, 2)) == 0.0
