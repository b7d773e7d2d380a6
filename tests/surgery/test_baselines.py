"""The baselines that read no conflict, or put what they read in the wrong place: static and shuffled weights."""

import json
from collections import Counter

import pytest
import torch

from counterpoint.errors import StrategyError
from counterpoint.surgery import Context, Surgeon, build_weighting, resolve_strategy
from counterpoint.surgery.weightings import weighting_problems
from counterpoint.surgery.weightings.base import PATIENCE
from counterpoint.surgery.weightings.pcgrad import pcgrad
from counterpoint.surgery.weightings.shuffled import ShuffledPCGrad, random_cycle

NAMES = tuple("abcde")
GROUPS = tuple(f"layers.{i}.mlp" for i in range(12))


def grams(num_groups: int = len(GROUPS), num_domains: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors_GDP = torch.randn(num_groups, num_domains, 7, generator=generator, dtype=torch.float64)
    return vectors_GDP @ vectors_GDP.mT


def context(num_groups: int = len(GROUPS), domains=NAMES[:3], seed: int = 0, step: int = 0) -> Context:
    return Context(GROUPS[:num_groups], tuple(domains), seed, step)


def rows(weights_GD: torch.Tensor) -> Counter[tuple[float, ...]]:
    return Counter(tuple(row) for row in weights_GD.tolist())


@pytest.mark.parametrize("step", range(5))
def test_shuffled_gives_pcgrads_rows_to_other_groups(step):
    gram_GDD, now = grams(num_domains=5), context(domains=NAMES, step=step)
    right_GD, found_GD = pcgrad(gram_GDD, now), ShuffledPCGrad()(gram_GDD, now)
    assert rows(found_GD) == rows(right_GD)
    assert len(rows(right_GD)) == len(GROUPS)  # so that a row tells whose it is
    assert not (found_GD == right_GD).all(dim=1).any()


@pytest.mark.parametrize("num_groups", [2, 3, 12])
def test_a_cycle_visits_every_group_and_is_drawn_anew_in_every_step(num_groups):
    cycles = [tuple(random_cycle(context(num_groups, step=step)).tolist()) for step in range(200)]
    assert all(sorted(cycle) == list(range(num_groups)) for cycle in cycles)
    sources = Counter(cycle[(cycle.index(0) - 1) % num_groups] for cycle in cycles)
    assert set(sources) == set(range(1, num_groups))  # every other group gives its weights at some time, itself never
    assert min(sources.values()) > 0.4 * 200 / (num_groups - 1)


def test_a_cycle_depends_on_seed_and_step_alone():
    def cycle(**changes: object) -> list[int]:
        return random_cycle(context(**changes)).tolist()

    assert cycle() == cycle(domains=NAMES[1:3])
    assert len({tuple(cycle(seed=s, step=t)) for s in range(3) for t in range(3)}) == 9
    # A golden value: the same cycle on every machine and rank.
    assert cycle(num_groups=5, seed=1, step=2) == [3, 1, 0, 2, 4]


def test_one_group_keeps_its_own_weights():
    gram_GDD = grams(1)
    assert (gram_GDD < 0).any()
    assert torch.equal(ShuffledPCGrad()(gram_GDD, context(1)), pcgrad(gram_GDD, context(1)))


def test_no_conflict_gives_exact_ones():
    assert ShuffledPCGrad()(grams().abs(), context()).eq(1).all()


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    ShuffledPCGrad()(grams(), context())
    assert torch.equal(before, torch.get_rng_state())


def test_in_a_surgeon_with_a_domain_missing(toy):
    for present in (3, 2, 1):
        gradients_D = toy.domains(present, seed=present)
        _, right, _ = toy.run(gradients_D, "mgs-tensor")
        found_grads, found, _ = toy.run(gradients_D, {"grouping": "tensor", "weighting": "shuffled"})
        assert rows(found.weights_GD) == rows(right.weights_GD)
        for group, weights_D in zip(found.groups, found.weights_GD, strict=True):
            expected = sum(w * g[group] for w, g in zip(weights_D, gradients_D.values(), strict=True))
            torch.testing.assert_close(found_grads[group], expected)


def test_static_weights_the_losses(toy):
    gradients_D = toy.domains(3)
    weighting = {"type": "static", "weights": {"alpha": 2, "delta": 0.25}}
    found, record, _ = toy.run(gradients_D, "mgs-tensor", weighting=weighting)
    model = toy.Loss(toy.SHAPES)
    parameters = dict(model.named_parameters())
    factors = {"alpha": 2.0, "delta": 0.25}
    loss = sum(
        factors.get(domain, 1.0) * (parameters[name] * gradient).sum()
        for domain, gradients in gradients_D.items()
        for name, gradient in gradients.items()
    )
    loss.backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.grad)
    assert record.domains == ("alpha", "beta", "delta")
    assert rows(record.weights_GD) == {(2.0, 1.0, 0.25): len(record.groups)}


def test_static_weights_of_one_are_plain_sums(toy):
    plain, _, _ = toy.run(toy.domains(2), "mixed")
    found, _, _ = toy.run(toy.domains(2), weighting={"type": "static", "weights": {"alpha": 1.0}})
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_one_domain_alone_keeps_its_static_weight(toy):
    """Surgery leaves a lone domain as it is; the weight of its loss must not depend on who else is there."""
    gradients_D = toy.domains(1)
    found, record, _ = toy.run(gradients_D, weighting={"type": "static", "weights": {"alpha": 3.0}})
    assert record.weights_GD.eq(3).all()
    torch.testing.assert_close(found["two"], 3 * gradients_D["alpha"]["two"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"weights .* at least 1 item.*, found {}. Domain and weight, as in {math: 2.0}"),
        ([2.0], r"weights .*, found \[2.0\]"),
        ({"a": 0}, r"weights.a should be greater than 0, found 0"),
        ({"a": -1.0}, r"weights.a should be greater than 0, found -1.0"),
        ({"a": float("inf")}, r"weights.a .*, found inf"),
        ({"a": float("nan")}, r"weights.a .*, found nan"),
        ({"a": True}, r"weights.a should be a valid number, found True"),
        ({"a": "2"}, r"weights.a should be a valid number, found '2'"),
        ({1: 2.0}, r"weights.1 should be a valid string, found 1"),
    ],
)
def test_bad_static_weights(weights, message):
    with pytest.raises(StrategyError, match=message):
        build_weighting({"type": "static", "weights": weights})


def test_static_needs_weights():
    with pytest.raises(StrategyError, match=r"weights is missing, and 'static' needs it. Domain and weight, as in"):
        build_weighting("static")


def test_a_weight_for_nobody_is_told_also_after_a_resumed_run():
    spec = {"type": "static", "weights": {"math": 2.0, "code": 1.5}}
    first, second = build_weighting(spec), build_weighting(spec)
    here = context(1, ("maths", "qa"))
    for _ in range(PATIENCE - 2):
        first(grams(1, 2), here)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second(grams(1, 2), context(1, ("code", "qa")))
    with pytest.raises(StrategyError, match=rf"weights names 'math', a domain that none of {PATIENCE} steps .*'maths'"):
        second(grams(1, 2), here)


def test_names_of_strategies_with_weights():
    spec = {"grouping": "global", "weighting": {"type": "static", "weights": {"qa": 0.5, "math": 2}}}
    strategy = resolve_strategy(spec)
    assert strategy.name == "global x static(weights=math:2+qa:0.5)"
    unknown = [path for path, _ in weighting_problems(strategy.weighting, ["qa", "code"])]
    assert unknown == [("weights", "math")]
    surgeon = Surgeon(torch.nn.Linear(2, 2), spec)
    surgeon.load_state_dict(surgeon.state_dict())
