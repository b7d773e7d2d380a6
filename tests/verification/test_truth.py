"""The suite's own truth is right, and its data are what they claim to be."""

from dataclasses import replace

import pytest
import torch

from counterpoint.surgery import Surgeon
from counterpoint.verification.data import Plan, number_of
from counterpoint.verification.models import ModelSpec, build_model, named_trainable
from counterpoint.verification.simulation import filed_cosines
from counterpoint.verification.truth import domain_gradient, truth

CPU = torch.device("cpu")
PLANS = {
    "even": Plan(shards=3, domains=3),
    "uneven": Plan(shards=3, domains=3, micro_batches=4, uneven=True, missing=True),
    "own ways": Plan(shards=4, domains=3, own_ways=True, uneven=True, missing=True),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_ranks_micro_batches_make_up_the_union(plan):
    for step in range(plan.steps):
        for domain in plan.names(step):
            pieces = [rows for shard in range(plan.shards) for rows in plan.micro(step, domain, shard)]
            union = plan.union(step, domain)
            assert len(union) > 0
            assert torch.equal(torch.cat([rows.tokens_BT for rows in pieces]), union.tokens_BT)
            assert torch.equal(torch.cat([rows.advantages_B for rows in pieces]), union.advantages_B)


def test_plans_are_as_awkward_as_they_say():
    uneven, own = PLANS["uneven"], PLANS["own ways"]
    sizes = {len(rows) for shard in range(3) for rows in uneven.micro(0, "domain-0", shard)}
    assert sizes == {0, 1, 2, 3}
    assert any(len(uneven.names(step)) == 2 for step in range(uneven.steps))
    orders = {tuple(own.order(0, shard)) for shard in range(own.shards)}
    assert len(orders) > 1
    assert any(len(own.order(step, shard)) < len(own.names(step)) for step in range(10) for shard in range(4))
    assert len({len(own.micro(0, "domain-1", shard)) for shard in range(own.shards)}) > 1
    assert [number_of(name) for name in PLANS["even"].names(1)] == [1, 2, 0]


def test_the_truth_is_what_one_surgeon_on_the_union_does():
    spec, plan = ModelSpec(), replace(PLANS["even"], steps=1)
    right = truth(spec, plan, CPU)
    model = build_model(spec, torch.float64)
    surgeon = Surgeon(model, "mgs")
    for domain in plan.names(0):
        for (_, parameter), gradient in zip(
            model.named_parameters(), domain_gradient(model, plan, 0, domain).values(), strict=True
        ):
            parameter.grad = gradient
        surgeon.collect(domain)
    record = surgeon.combine()
    assert right.num_conflicts > 0
    torch.testing.assert_close(record.weights_GD, right.weights[0])
    torch.testing.assert_close(record.gram_GDD, torch.stack(list(right.grams["module"].values())))


@pytest.mark.parametrize("compute", [None, torch.float64])
def test_the_piecewise_gradient_is_that_of_the_union(compute):
    plan = PLANS["uneven"]
    model = build_model(ModelSpec(), torch.float64)
    whole = domain_gradient(model, plan, 2, "domain-1")
    parts = domain_gradient(model, plan, 2, "domain-1", compute)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient)


@pytest.mark.parametrize(
    "spec", [ModelSpec(), ModelSpec(tied=True), ModelSpec(experts=2)], ids=["plain", "tied", "experts"]
)
def test_models_are_equal_in_every_dtype_and_leave_the_global_generator_alone(spec):
    before = torch.get_rng_state()
    single, double = build_model(spec, torch.float32), build_model(spec, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in named_trainable(single).items():
        assert torch.equal(parameter.double(), named_trainable(double)[name])


@pytest.mark.parametrize(("true", "each", "by_domain"), [(0.0, 0.62, 0.0), (-0.5, 0.43, -0.39), (-0.9, 0.09, -0.70)])
def test_with_eight_ranks_a_mixture_hides_conflicts(true, each, by_domain):
    found = filed_cosines(true)
    assert found.by_each_rank == pytest.approx(each, abs=0.02)
    assert found.by_domain == pytest.approx(by_domain, abs=0.02)
    assert filed_cosines(true) == found
