"""Shares that change over steps: every step has those that hold, and no change costs a domain anything."""

import random
from collections import Counter

import pytest

from counterpoint.domains.changing import ChangingQuotas
from counterpoint.domains.sampler import QuotaSampler
from counterpoint.domains.shares import Geometry, Quotas, normalise
from counterpoint.errors import DomainError


def random_shares(rng, number):
    return {f"d{i}": rng.choice([rng.random() + 0.01, rng.randint(1, 5)]) for i in range(number)}


@pytest.mark.parametrize("seed", range(12))
def test_however_often_shares_change_each_domain_is_within_one_unit_of_its_due(seed):
    rng = random.Random(seed)
    number, units = rng.randint(2, 6), rng.randint(1, 12)
    shares = random_shares(rng, number)
    quotas, due, had = ChangingQuotas(shares, units, "carry"), [0.0] * number, [0] * number
    for step in range(100):
        if rng.random() < 0.7:
            shares = random_shares(rng, number)
            quotas.change(step, shares)
        counts = quotas.counts(step)
        assert sum(counts) == units
        assert min(counts) >= 0
        had = [before + count for before, count in zip(had, counts, strict=True)]
        assert quotas.before(step + 1) == had
        due = [before + units * float(share) for before, share in zip(due, normalise(shares).values(), strict=True)]
        assert max(abs(one - other) for one, other in zip(due, had, strict=True)) < 1 + 1e-6


def test_a_start_anew_at_every_change_would_cheat_a_domain():
    """The negative control: three units of four go to the domain with five eighths, step after step."""
    shares = {"a": 5.0, "b": 3.0}
    anew = [Quotas(shares, 4, "carry").counts(0)[0] for _ in range(20)]
    quotas = ChangingQuotas(shares, 4, "carry")
    for step in range(20):
        quotas.change(step, shares)
    assert abs(sum(anew) - 50) >= 10
    assert abs(quotas.before(20)[0] - 50) <= 1


def test_what_is_asked_again_is_answered_alike_and_forgotten_on_demand():
    quotas = ChangingQuotas({"a": 1, "b": 2}, 4, "carry")
    start = [quotas.counts(step) for step in range(9)]
    quotas.change(2, {"a": 2, "b": 1})
    quotas.change(5, {"a": 1, "b": 1})
    changed = [quotas.counts(step) for step in range(9)]
    assert changed[:2] == start[:2]
    assert changed[2:] != start[2:]
    assert [quotas.counts(step) for step in reversed(range(9))] == changed[::-1]
    quotas.forget()
    assert [quotas.counts(step) for step in range(9)] == start


def test_exact_shares_change_exactly_and_others_are_refused():
    quotas = ChangingQuotas({"a": 1, "b": 1}, 4)
    quotas.change(3, {"a": 3, "b": 1})
    assert [quotas.counts(step) for step in range(2, 5)] == [[2, 2], [3, 1], [3, 1]]
    with pytest.raises(DomainError, match="cannot be split"):
        quotas.change(5, {"a": 2, "b": 1})


def steps_of(sampler, steps):
    """Domain -> prompts of each optimizer step, as the trainer takes them from the generations."""
    geometry, size = sampler.geometry, sampler.geometry.rows_per_device
    every = geometry.steps_per_generation * geometry.iterations
    rows = list(sampler)
    found = []
    for step in range(steps):
        counted = Counter()
        for micro in range(step * geometry.accumulation, (step + 1) * geometry.accumulation):
            start = micro // every * every * geometry.steps_per_generation * size
            at = start + micro % geometry.steps_per_generation * size
            counted.update("a" if row < 40 else "b" for row in rows[at : at + size])
        found.append(counted["a"] / counted.total())
    return found


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({}, 3),
        ({"steps_per_generation": 8}, 3),  # in the middle of a generation
        ({"iterations": 2}, 4),  # of the next generation that is new
        ({"steps_per_generation": 8, "iterations": 2}, 4),
        ({"steps_per_generation": 2}, 3),
    ],
    ids=str,
)
def test_optimizer_steps_have_the_shares_from_the_step_of_the_change_on(more, changed):
    batch = {"num_generations": 2, "rows_per_device": 2, "accumulation": 4}
    sampler = QuotaSampler({"a": 40, "b": 40}, shares={"a": 1, "b": 1}, **batch, **more)
    sampler.change_shares(sampler.geometry.quota_step(3), {"b": 1, "a": 3})
    found = steps_of(sampler, 8)
    assert found == [0.5] * changed + [0.75] * (8 - changed)


def test_the_batch_that_would_do_is_named_for_changed_shares_too():
    sampler = QuotaSampler(
        {"a": 4, "b": 4}, shares={"a": 1, "b": 1}, num_generations=2, rows_per_device=2, accumulation=4
    )
    with pytest.raises(DomainError, match="gradient_accumulation_steps=3 or 6 would do"):
        sampler.change_shares(2, {"a": 2, "b": 1})
    with pytest.raises(DomainError, match="the domains are"):
        sampler.change_shares(2, {"a": 2})
    assert Geometry(2, 2, 4, 4).quota_step(7) == 7
