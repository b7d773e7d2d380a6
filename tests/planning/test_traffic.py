"""Bytes sent, against a ring played through chunk by chunk."""

import pytest

from counterpoint.planning import traffic


def ring(ranks: int, chunk: float) -> float:
    """Bytes a rank sends while ``ranks`` chunks go round once: each of N - 1 turns passes one chunk on."""
    return sum(chunk for _ in range(ranks - 1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_collectives_are_rings(ranks):
    size = 960.0
    assert traffic.reduce_scatter(size, ranks) == pytest.approx(ring(ranks, size / ranks))
    assert traffic.all_reduce(size, ranks) == pytest.approx(2 * ring(ranks, size / ranks))


@pytest.mark.parametrize("domains", [1, 2, 3, 8])
def test_surgery_costs_half_of_domains_plus_one_all_reduces(domains):
    found = traffic.ddp_surgery(100.0, 8, domains)
    assert found == pytest.approx((domains + 1) / 2 * traffic.all_reduce(100.0, 8))


def test_one_domain_costs_what_ddp_costs():
    assert traffic.ddp_surgery(100.0, 4, 1) == pytest.approx(traffic.ddp_every_batch(100.0, 4, 1))


def test_replicas_reduce_their_shards():
    inside = traffic.reduce_scatter(100.0, 8)
    assert traffic.sharded(100.0, 8, 1, 3) == pytest.approx(3 * inside)
    assert traffic.sharded(100.0, 8, 2, 1) == pytest.approx(inside + traffic.all_reduce(12.5, 2))
