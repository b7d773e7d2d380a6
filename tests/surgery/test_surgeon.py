"""What the Surgeon promises about its result, each promise on explicit gradients."""

import itertools

import pytest
import torch
from torch import Tensor

from counterpoint.errors import GroupingError, StrategyError, UnsupportedError
from counterpoint.surgery import GROUPINGS, Surgeon, group_parameters


def halves(name: str, shape: tuple[int, ...]) -> str:
    return "left" if name in ("one", "scalar") else "right"


@pytest.mark.parametrize("grouping", ["global", "tensor", halves])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_result_is_pcgrad_of_every_group(toy, every_pcgrad, grouping, number):
    gradients_D = toy.domains(number, seed=number)
    found, record, _ = toy.run(gradients_D, grouping=grouping, weighting="pcgrad")
    groups = {name: pieces[0] for name, pieces in group_parameters(toy.SHAPES, grouping).items()}
    assert record.groups == tuple(dict.fromkeys(groups.values()))
    for group in record.groups:
        members = [name for name in toy.SHAPES if groups[name] == group]
        allowed = torch.stack(every_pcgrad([toy.flat(gradients, members) for gradients in gradients_D.values()]))
        distance = (allowed - toy.flat(found, members)).abs().amax(dim=1).min()
        assert distance < 1e-12, group


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_result_is_pcgrad_on_a_real_model(toy, build, every_pcgrad, grouping):
    """Mixtral has fused experts, which module surgery cuts into slices."""
    model = build("mixtral").double()
    explicit: list[dict[str, Tensor]] = []
    surgeon = Surgeon(model, grouping=grouping, weighting="pcgrad")
    for seed in range(3):
        explicit.append(toy.random_gradients({name: tuple(p.shape) for name, p in model.named_parameters()}, seed))
        for name, parameter in model.named_parameters():
            parameter.grad = explicit[-1][name].clone()
        surgeon.collect(f"domain-{seed}")
    record = surgeon.combine()
    found = {name: p.grad for name, p in model.named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    pieces = group_parameters(shapes, grouping)
    assert not record.weights_GD.eq(1).all()
    assert set(record.groups) == {group for groups in pieces.values() for group in groups}
    for group in record.groups:
        vectors = [group_vector(gradients, pieces, group) for gradients in (*explicit, found)]
        allowed = torch.stack(every_pcgrad(vectors[:-1]))
        assert (allowed - vectors[-1]).abs().amax(dim=1).min() < 1e-12, group


def group_vector(gradients: dict[str, Tensor], pieces: dict[str, tuple[str, ...]], group: str) -> Tensor:
    parts = []
    for name, groups in pieces.items():
        cut = gradients[name].chunk(len(groups)) if len(groups) > 1 else [gradients[name]]
        parts += [part.reshape(-1) for part, owner in zip(cut, groups, strict=True) if owner == group]
    return torch.cat(parts)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_mixed_is_the_plain_sum(toy, number):
    gradients_D = toy.domains(number, dtype=torch.float32)
    found, record, _ = toy.run(gradients_D, "mixed")
    for name in toy.SHAPES:
        exact = sum(gradients[name].double() for gradients in gradients_D.values())
        torch.testing.assert_close(found[name].double(), exact, rtol=1e-6, atol=1e-6)
    assert record.weights_GD.eq(1).all()


@pytest.mark.parametrize("strategy", ["pcgrad", "mgs-tensor", {"grouping": halves, "weighting": "pcgrad"}])
def test_a_step_without_conflict_is_the_plain_sum(toy, strategy):
    gradients_D = {d: {n: g.abs() for n, g in gradients.items()} for d, gradients in toy.domains(4).items()}
    found, record, _ = toy.run(gradients_D, strategy)
    plain, _, _ = toy.run(gradients_D, "mixed")
    assert record.weights_GD.eq(1).all()
    assert all(torch.equal(found[name], plain[name]) for name in toy.SHAPES)


def test_only_groups_in_conflict_are_changed(toy):
    gradients_D = toy.domains(2)
    for name in ("one", "two", "scalar"):
        gradients_D["beta"][name] = gradients_D["alpha"][name].clone()
    gradients_D["beta"]["three"] = -0.5 * gradients_D["alpha"]["three"]
    _, record, _ = toy.run(gradients_D, "mgs-tensor")
    changed = {group for group, row in zip(record.groups, record.weights_GD, strict=True) if not row.eq(1).all()}
    assert changed == {"three"}


def test_one_domain_passes_bit_for_bit(toy):
    gradients = toy.random_gradients(toy.SHAPES, 0, torch.bfloat16)
    found, record, _ = toy.run({"alpha": gradients}, "mgs-tensor")
    assert all(torch.equal(found[name], gradients[name]) for name in toy.SHAPES)
    assert record.domains == ("alpha",)


@pytest.mark.parametrize("strategy", ["mixed", "pcgrad", "mgs-tensor"])
def test_order_of_collection_does_not_matter(toy, strategy):
    gradients_D = toy.domains(3)
    first, record, _ = toy.run(gradients_D, strategy)
    for order in itertools.permutations(gradients_D):
        again, other, _ = toy.run({name: gradients_D[name] for name in order}, strategy)
        assert other.domains == record.domains == tuple(sorted(gradients_D))
        assert all(torch.equal(first[name], again[name]) for name in toy.SHAPES)


def test_micro_batches_add_up_to_one_batch(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    parts = [toy.domains(3, seed=s) for s in range(4)]
    for part in parts:
        toy.collect(surgeon, model, part)
    surgeon.combine()
    whole = {d: {n: sum(part[d][n] for part in parts) for n in toy.SHAPES} for d in parts[0]}
    found, _, _ = toy.run(whole, "mgs-tensor")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-12, atol=1e-12)


def test_absent_domains_take_no_part(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    for present in (["beta", "alpha"], ["gamma"], ["alpha", "gamma", "beta"]):
        gradients_D = toy.domains(4)
        toy.collect(surgeon, model, {name: gradients_D[name] for name in present})
        record = surgeon.combine()
        assert record.domains == tuple(sorted(present))
        assert record.gram_GDD.shape == (4, len(present), len(present))
        model.zero_grad()
    assert surgeon.step == 3


def test_a_parameter_without_gradient_counts_as_zero(toy, every_pcgrad):
    gradients_D = toy.domains(3)
    del gradients_D["alpha"]["one"], gradients_D["beta"]["two"]
    for gradients in gradients_D.values():
        gradients.pop("scalar")
    found, record, _ = toy.run(gradients_D, "pcgrad")
    assert found["scalar"] is None
    full = [
        {n: gradients.get(n, torch.zeros(toy.SHAPES[n]).double()) for n in toy.SHAPES}
        for gradients in gradients_D.values()
    ]
    allowed = torch.stack(every_pcgrad([toy.flat(gradients, list(toy.SHAPES)) for gradients in full]))
    vectors_DP = torch.stack([toy.flat(gradients, list(toy.SHAPES)) for gradients in full])
    torch.testing.assert_close(record.gram_GDD[0], vectors_DP @ vectors_DP.T)
    found["scalar"] = torch.zeros((), dtype=torch.float64)
    assert (allowed - toy.flat(found, list(toy.SHAPES))).abs().amax(dim=1).min() < 1e-12
    assert record.finite


def test_a_later_micro_batch_may_bring_the_first_gradient(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "mixed")
    gradients = toy.random_gradients(toy.SHAPES, 0)
    for name in toy.SHAPES:
        model.backward({name: gradients[name]})
        surgeon.collect("alpha")
    surgeon.combine()
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_gives_the_plain_sum(toy, bad):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    gradients_D = toy.domains(3)
    gradients_D["beta"]["two"][4] = bad
    toy.collect(surgeon, model, gradients_D)
    record = surgeon.combine()
    assert not record.finite
    assert surgeon.nonfinite_steps == 1
    assert record.weights_GD.eq(1).all()
    torch.testing.assert_close(model.one.grad, sum(g["one"] for g in gradients_D.values()))
    assert not model.two.grad.isfinite().all()
    model.zero_grad()
    toy.collect(surgeon, model, toy.domains(3))
    assert surgeon.combine().finite
    assert surgeon.nonfinite_steps == 1


def test_nothing_collected_is_an_error(toy):
    surgeon = Surgeon(toy.Loss(toy.SHAPES), "pcgrad")
    with pytest.raises(StrategyError, match=r"call collect\(domain\) after each backward"):
        surgeon.combine()
    with pytest.raises(StrategyError, match=r"collect\('alpha'\) found no gradient"):
        surgeon.collect("alpha")


def test_reset_forgets_what_was_collected(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "pcgrad")
    toy.collect(surgeon, model, toy.domains(2))
    assert surgeon.collected == ("alpha", "beta")
    surgeon.reset()
    assert surgeon.collected == ()
    assert surgeon.step == 0


def test_global_random_state_is_untouched(toy):
    before = torch.get_rng_state()
    gradients_D = toy.domains(5)
    toy.run(gradients_D, "mgs-tensor")
    assert torch.equal(before, torch.get_rng_state())


def test_seed_decides_the_order(toy):
    gradients_D = toy.domains(5, seed=3)
    results = [toy.run(gradients_D, "pcgrad", seed=seed)[0]["one"] for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


@pytest.mark.parametrize("strategy", ["mixed", "mgs-tensor", "pcgrad"])
def test_every_grouping_follows_from_the_same_pass(toy, strategy):
    gradients_D = toy.domains(3)
    _, record, _ = toy.run(gradients_D, strategy)
    for grouping in ("global", "tensor", halves):
        groups, gram_GDD = record.regroup(grouping)
        _, direct, _ = toy.run(gradients_D, grouping=grouping, weighting="ones")
        assert groups == direct.groups
        torch.testing.assert_close(gram_GDD, direct.gram_GDD, rtol=1e-12, atol=0)


def test_regrouping_finer_than_the_units_is_refused(toy):
    _, record, _ = toy.run(toy.domains(2), "pcgrad")
    with pytest.raises(GroupingError, match="into 5 slices, but its inner products were kept for 1"):
        record.regroup(lambda name, shape: list("abcde") if name == "one" else "rest")


def test_surgery_in_a_training_loop_helps_the_domains_it_should(toy):
    """Two quadratic losses that fight over one coordinate: PCGrad's update hurts neither domain, the sum hurts one."""
    gradients_D = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([-3.0, 1.0])}}

    def update(strategy: str) -> Tensor:
        model = toy.Loss({"w": (2,)}, torch.float32)
        surgeon = Surgeon(model, strategy)
        toy.collect(surgeon, model, gradients_D)
        surgeon.combine()
        return model.w.grad

    assert update("mixed") @ gradients_D["a"]["w"] < 0
    assert update("pcgrad") @ gradients_D["a"]["w"] >= 0
    assert update("pcgrad") @ gradients_D["b"]["w"] >= 0


def test_deepspeed_is_refused():
    class DeepSpeedEngine(torch.nn.Linear):
        """What DeepSpeed calls the model that it has wrapped."""

    with pytest.raises(UnsupportedError, match=r"DeepSpeed .*steps the optimizer inside backward.*Use FSDP2"):
        Surgeon(DeepSpeedEngine(2, 2), "pcgrad")
    partitioned = torch.nn.Linear(2, 2)
    partitioned.weight.ds_id = 0  # how its third stage marks parameters
    with pytest.raises(UnsupportedError, match="DeepSpeed"):
        Surgeon(partitioned, "pcgrad")
