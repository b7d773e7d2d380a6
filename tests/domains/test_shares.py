"""Exact splits, and the bound of the carry rule for any shares."""

import random

import pytest

from counterpoint.domains.shares import Quotas, exact_units, normalise, ratio, would_do
from counterpoint.errors import DomainError


def test_normalise_is_exact():
    assert sum(normalise({"a": 0.1, "b": 0.2, "c": 0.3}).values()) == 1
    assert ratio({"a": 0.1, "b": 0.2, "c": 0.3}) == "1:2:3"
    assert exact_units({"a": 1, "b": 1.5}) == 5


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf")])
def test_a_share_is_a_positive_number(share):
    with pytest.raises(DomainError, match=r"The share of domain 'b' must be a positive number, found"):
        normalise({"a": 1.0, "b": share})


@pytest.mark.parametrize(
    ("shares", "units", "counts"),
    [((1, 1), 4, [2, 2]), ((2, 1, 1), 8, [4, 2, 2]), ((0.3, 0.7), 10, [3, 7]), ((5,), 3, [3])],
)
def test_exact_splits(shares, units, counts):
    quotas = Quotas({str(i): share for i, share in enumerate(shares)}, units)
    assert quotas.counts(0) == counts
    assert quotas.counts(10**12) == counts


@pytest.mark.parametrize(
    ("units", "would", "text"), [(8, [6, 9], "6 or 9 would do"), (2, [3], "3 would do"), (100, [99, 102], "99 or 102")]
)
def test_a_split_that_cannot_be_exact_names_those_that_can(units, would, text):
    shares = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert would_do(shares, units) == would
    with pytest.raises(DomainError, match=rf"{units} units of rows per step cannot be split 1:1:1 .*{text}.*carry"):
        Quotas(shares, units)


def test_unknown_rule():
    with pytest.raises(DomainError, match=r"Unknown share rule 'cary': did you mean 'carry'\?"):
        Quotas({"a": 1.0}, 1, "cary")


def random_shares(rng):
    names = [f"d{i}" for i in range(rng.randint(1, 16))]
    if rng.random() < 0.5:
        return {name: float(rng.choice([1, 1, 2, 3, 7, 50])) for name in names}
    return {name: round(rng.uniform(0.001, 3), rng.randint(3, 9)) for name in names}


@pytest.mark.parametrize("seed", range(60))
def test_carry_keeps_every_domain_within_one_unit_of_its_share_at_every_step(seed):
    rng = random.Random(seed)
    shares, units = random_shares(rng), rng.randint(1, 40)
    quotas, exact = Quotas(shares, units, "carry"), normalise(shares)
    had = [0] * len(shares)
    for step in range(120):
        counts = quotas.counts(step)
        assert sum(counts) == units
        assert min(counts) >= 0
        had = [before + count for before, count in zip(had, counts, strict=True)]
        assert quotas.before(step + 1) == had
        for count, share in zip(had, exact.values(), strict=True):
            assert abs(count - share * units * (step + 1)) < 1


def test_handing_units_to_the_domain_furthest_behind_breaks_the_bound():
    """The negative control: why the schedule is not the simple one."""
    written = {str(i): float(share) for i, share in enumerate((1, 1, 8, 1, 1, 100, 13, 1, 8, 100, 5, 100, 1))}
    shares = normalise(written)
    had = dict.fromkeys(shares, 0)
    quotas, worst, ours = Quotas(written, 1, "carry"), 0.0, 0.0
    for unit in range(1, 340):
        had[max(shares, key=lambda name: unit * shares[name] - had[name])] += 1
        worst = max(worst, *(abs(float(unit * shares[name] - had[name])) for name in shares))
        given = zip(quotas.before(unit), shares.values(), strict=True)
        ours = max(ours, *(abs(float(unit * share - count)) for count, share in given))
    assert worst > 1.4
    assert ours < 1


def test_any_step_can_be_asked_for_first():
    shares = {"a": 1.0, "b": 2.0, "c": 4.0}
    in_order = Quotas(shares, 3, "carry")
    counts = [in_order.counts(step) for step in range(50)]
    for step in (49, 3, 17):
        assert Quotas(shares, 3, "carry").counts(step) == counts[step]
    assert Quotas(shares, 3, "carry").counts(7 * 10**12 + 3) == counts[3]
