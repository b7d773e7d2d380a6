"""What the Surgeon promises, each promise on explicit gradients."""

import gc
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from counterpoint.errors import GroupingError, StrategyError, UnsupportedError
from counterpoint.surgery import GROUPINGS, Surgeon, group_parameters

NAMES = ["alpha", "beta", "delta", "gamma", "zeta"]


class Loss(nn.Module):
    """A model whose gradient in a micro-batch is whatever the test wants it to be."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))

    def backward(self, gradients: dict[str, Tensor]) -> None:
        parameters = dict(self.named_parameters())
        sum((parameters[name] * gradient).sum() for name, gradient in gradients.items()).backward()


SHAPES = {"one": (5, 3), "two": (7,), "three": (2, 2, 2), "scalar": ()}


def random_gradients(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def collect(surgeon: Surgeon, model: Loss, gradients_D: dict[str, dict[str, Tensor]]) -> None:
    for domain, gradients in gradients_D.items():
        model.backward(gradients)
        surgeon.collect(domain)


def domains(number: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, dict[str, Tensor]]:
    return {name: random_gradients(SHAPES, 100 * seed + d, dtype) for d, name in enumerate(NAMES[:number])}


def run(gradients_D: dict[str, dict[str, Tensor]], strategy: object = "pcgrad", **kwargs: object):
    model = Loss(SHAPES, next(iter(gradients_D.values()))["three"].dtype)
    surgeon = Surgeon(model, strategy, **kwargs)
    collect(surgeon, model, gradients_D)
    record = surgeon.combine()
    return {name: p.grad for name, p in model.named_parameters()}, record, surgeon


def flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].reshape(-1) for name in names])


def halves(name: str, shape: tuple[int, ...]) -> str:
    return "left" if name in ("one", "scalar") else "right"


@pytest.mark.parametrize("grouping", ["global", "tensor", halves])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_result_is_pcgrad_of_every_group(every_pcgrad, grouping, number):
    gradients_D = domains(number, seed=number)
    found, record, _ = run(gradients_D, grouping=grouping, weighting="pcgrad")
    groups = {name: pieces[0] for name, pieces in group_parameters(SHAPES, grouping).items()}
    assert record.groups == tuple(dict.fromkeys(groups.values()))
    for group in record.groups:
        members = [name for name in SHAPES if groups[name] == group]
        allowed = torch.stack(every_pcgrad([flat(gradients, members) for gradients in gradients_D.values()]))
        distance = (allowed - flat(found, members)).abs().amax(dim=1).min()
        assert distance < 1e-12, group


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_result_is_pcgrad_on_a_real_model(build, every_pcgrad, grouping):
    """Mixtral has fused experts, which module surgery cuts into slices."""
    model = build("mixtral").double()
    explicit: list[dict[str, Tensor]] = []
    surgeon = Surgeon(model, grouping=grouping, weighting="pcgrad")
    for seed in range(3):
        explicit.append(random_gradients({name: tuple(p.shape) for name, p in model.named_parameters()}, seed))
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
def test_mixed_is_the_plain_sum(number):
    gradients_D = domains(number, dtype=torch.float32)
    found, record, _ = run(gradients_D, "mixed")
    for name in SHAPES:
        exact = sum(gradients[name].double() for gradients in gradients_D.values())
        torch.testing.assert_close(found[name].double(), exact, rtol=1e-6, atol=1e-6)
    assert record.weights_GD.eq(1).all()


@pytest.mark.parametrize("strategy", ["pcgrad", "mgs-tensor", {"grouping": halves, "weighting": "pcgrad"}])
def test_a_step_without_conflict_is_the_plain_sum(strategy):
    gradients_D = {d: {n: g.abs() for n, g in gradients.items()} for d, gradients in domains(4).items()}
    found, record, _ = run(gradients_D, strategy)
    plain, _, _ = run(gradients_D, "mixed")
    assert record.weights_GD.eq(1).all()
    assert all(torch.equal(found[name], plain[name]) for name in SHAPES)


def test_only_groups_in_conflict_are_changed():
    gradients_D = domains(2)
    for name in ("one", "two", "scalar"):
        gradients_D["beta"][name] = gradients_D["alpha"][name].clone()
    gradients_D["beta"]["three"] = -0.5 * gradients_D["alpha"]["three"]
    _, record, _ = run(gradients_D, "mgs-tensor")
    changed = {group for group, row in zip(record.groups, record.weights_GD, strict=True) if not row.eq(1).all()}
    assert changed == {"three"}


def test_one_domain_passes_bit_for_bit():
    gradients = random_gradients(SHAPES, 0, torch.bfloat16)
    found, record, _ = run({"alpha": gradients}, "mgs-tensor")
    assert all(torch.equal(found[name], gradients[name]) for name in SHAPES)
    assert record.domains == ("alpha",)


@pytest.mark.parametrize("strategy", ["mixed", "pcgrad", "mgs-tensor"])
def test_order_of_collection_does_not_matter(strategy):
    gradients_D = domains(3)
    first, record, _ = run(gradients_D, strategy)
    for order in itertools.permutations(gradients_D):
        again, other, _ = run({name: gradients_D[name] for name in order}, strategy)
        assert other.domains == record.domains == tuple(sorted(gradients_D))
        assert all(torch.equal(first[name], again[name]) for name in SHAPES)


def test_micro_batches_add_up_to_one_batch():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    parts = [domains(3, seed=s) for s in range(4)]
    for part in parts:
        collect(surgeon, model, part)
    surgeon.combine()
    whole = {d: {n: sum(part[d][n] for part in parts) for n in SHAPES} for d in parts[0]}
    found, _, _ = run(whole, "mgs-tensor")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-12, atol=1e-12)


def test_absent_domains_take_no_part():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    for present in (["beta", "alpha"], ["gamma"], ["alpha", "gamma", "beta"]):
        gradients_D = domains(4)
        collect(surgeon, model, {name: gradients_D[name] for name in present})
        record = surgeon.combine()
        assert record.domains == tuple(sorted(present))
        assert record.gram_GDD.shape == (4, len(present), len(present))
        model.zero_grad()
    assert surgeon.step == 3


def test_a_parameter_without_gradient_counts_as_zero(every_pcgrad):
    gradients_D = domains(3)
    del gradients_D["alpha"]["one"], gradients_D["beta"]["two"]
    for gradients in gradients_D.values():
        gradients.pop("scalar")
    found, record, _ = run(gradients_D, "pcgrad")
    assert found["scalar"] is None
    full = [
        {n: gradients.get(n, torch.zeros(SHAPES[n]).double()) for n in SHAPES} for gradients in gradients_D.values()
    ]
    allowed = torch.stack(every_pcgrad([flat(gradients, list(SHAPES)) for gradients in full]))
    found["scalar"] = torch.zeros((), dtype=torch.float64)
    assert (allowed - flat(found, list(SHAPES))).abs().amax(dim=1).min() < 1e-12
    assert record.finite


def test_a_later_micro_batch_may_bring_the_first_gradient():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "mixed")
    gradients = random_gradients(SHAPES, 0)
    for name in SHAPES:
        model.backward({name: gradients[name]})
        surgeon.collect("alpha")
    surgeon.combine()
    assert all(torch.equal(p.grad, gradients[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_gives_the_plain_sum(bad):
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "mgs-tensor")
    gradients_D = domains(3)
    gradients_D["beta"]["two"][4] = bad
    collect(surgeon, model, gradients_D)
    record = surgeon.combine()
    assert not record.finite
    assert surgeon.nonfinite_steps == 1
    assert record.weights_GD.eq(1).all()
    torch.testing.assert_close(model.one.grad, sum(g["one"] for g in gradients_D.values()))
    assert not model.two.grad.isfinite().all()
    model.zero_grad()
    collect(surgeon, model, domains(3))
    assert surgeon.combine().finite
    assert surgeon.nonfinite_steps == 1


def test_nothing_collected_is_an_error():
    surgeon = Surgeon(Loss(SHAPES), "pcgrad")
    with pytest.raises(StrategyError, match=r"call collect\(domain\) after each backward"):
        surgeon.combine()
    with pytest.raises(StrategyError, match=r"collect\('alpha'\) found no gradient"):
        surgeon.collect("alpha")


def test_reset_forgets_what_was_collected():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "pcgrad")
    collect(surgeon, model, domains(2))
    assert surgeon.collected == ("alpha", "beta")
    surgeon.reset()
    assert surgeon.collected == ()
    assert surgeon.step == 0


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    gradients_D = domains(5)
    run(gradients_D, "mgs-tensor")
    assert torch.equal(before, torch.get_rng_state())


def test_seed_decides_the_order():
    gradients_D = domains(5, seed=3)
    results = [run(gradients_D, "pcgrad", seed=seed)[0]["one"] for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert any(not torch.equal(results[0], other) for other in results[2:])


@pytest.mark.parametrize("strategy", ["mixed", "mgs-tensor", "pcgrad"])
def test_every_grouping_follows_from_the_same_pass(strategy):
    gradients_D = domains(3)
    _, record, _ = run(gradients_D, strategy)
    for grouping in ("global", "tensor", halves):
        groups, gram_GDD = record.regroup(grouping)
        _, direct, _ = run(gradients_D, grouping=grouping, weighting="ones")
        assert groups == direct.groups
        torch.testing.assert_close(gram_GDD, direct.gram_GDD, rtol=1e-12, atol=0)


def test_regrouping_finer_than_the_units_is_refused():
    _, record, _ = run(domains(2), "pcgrad")
    with pytest.raises(GroupingError, match="into 5 slices, but its inner products were kept for 1"):
        record.regroup(lambda name, shape: list("abcde") if name == "one" else "rest")


def test_low_precision_gradients_keep_their_type():
    gradients_D = domains(3, dtype=torch.bfloat16)
    found, record, _ = run(gradients_D, "pcgrad")
    exact = flat(
        {
            n: sum(w * g[n].double() for w, g in zip(record.weights_GD[0], gradients_D.values(), strict=True))
            for n in SHAPES
        },
        list(SHAPES),
    )
    assert found["one"].dtype == torch.bfloat16
    torch.testing.assert_close(flat(found, list(SHAPES)).double(), exact, rtol=2**-8, atol=1e-3)
    wide = torch.stack([flat(gradients, list(SHAPES)).double() for gradients in gradients_D.values()])
    torch.testing.assert_close(record.gram_GDD[0], wide @ wide.T, rtol=1e-6, atol=1e-6)


def test_gradient_tensors_are_taken_over_not_copied():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "pcgrad")
    pointers = set()
    for gradients in domains(3).values():
        model.backward(gradients)
        pointers |= {p.grad.data_ptr() for p in model.parameters()}
        surgeon.collect("alpha" if not surgeon.collected else f"domain-{len(surgeon.collected)}")
        assert all(p.grad is None for p in model.parameters())
    surgeon.combine()
    assert {p.grad.data_ptr() for p in model.parameters()} < pointers


def test_at_most_one_gradient_per_domain_is_alive():
    size, number = 250_007, 3
    model = Loss({"weight": (size,)}, torch.float32)
    surgeon = Surgeon(model, "mgs-tensor")
    baseline = live_elements(size)
    for seed in range(number):
        model.weight.grad = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        surgeon.collect(f"domain-{seed}")
    assert live_elements(size) - baseline == number
    with LargestAllocation() as allocations:
        surgeon.combine()
    assert allocations.largest < size // 2  # no second copy of any gradient, not even for a moment
    assert live_elements(size) - baseline == 1


class LargestAllocation(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that any operation inside the block made."""

    largest = 0

    def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in known:
            self.largest = max(self.largest, result.numel())
        return result


def live_elements(size: int) -> int:
    gc.collect()
    storages = {
        o.untyped_storage().data_ptr()
        for o in gc.get_objects()
        if type(o) in (Tensor, nn.Parameter) and o.numel() >= size
    }
    return len(storages)


def test_gradients_in_borrowed_memory_need_copies():
    """DDP with gradient_as_bucket_view=True: every backward writes into the same memory."""
    bucket = torch.zeros(4)

    def results(copy: bool) -> Tensor:
        parameter = nn.Parameter(torch.zeros(4))
        surgeon = Surgeon({"weight": parameter}, "mgs-tensor", copy=copy)
        for domain, value in (("a", [1.0, 0, 0, 0]), ("b", [-1.0, 1.0, 0, 0])):
            bucket.copy_(torch.tensor(value))
            parameter.grad = bucket.view(4)
            surgeon.collect(domain)
        surgeon.combine()
        return parameter.grad

    torch.testing.assert_close(results(copy=True), torch.tensor([0.5, 1.5, 0, 0]))
    assert not torch.allclose(results(copy=False), torch.tensor([0.5, 1.5, 0, 0]))  # the control


def test_gradients_of_other_strides():
    model = Loss({"weight": (3, 4)})
    model.weight.grad = torch.arange(12.0, dtype=torch.float64).view(4, 3).T
    surgeon = Surgeon(model, "pcgrad")
    surgeon.collect("a")
    model.weight.grad = -torch.ones(3, 4, dtype=torch.float64)
    surgeon.collect("b")
    surgeon.combine()
    vectors = torch.stack([torch.arange(12.0).view(4, 3).T.reshape(-1), -torch.ones(12)]).double()
    gram_DD = vectors @ vectors.T
    weights = 1 - gram_DD[0, 1] / gram_DD.diagonal().flip(0).flip(0)
    torch.testing.assert_close(model.weight.grad.reshape(-1), weights @ vectors)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    surgeon = Surgeon(embedding, "mgs-tensor")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match=r"gradient of 'weight' is sparse.*sparse=False"):
        surgeon.collect("a")


def test_sharded_parameters_are_refused():
    parameter = nn.Parameter(torch.ones(2))
    parameter.placements = ("shard",)
    with pytest.raises(UnsupportedError, match="'w' is sharded over devices"):
        Surgeon({"w": parameter}, "pcgrad")


def test_frozen_models_are_refused():
    with pytest.raises(StrategyError, match="No parameter requires a gradient"):
        Surgeon(Loss(SHAPES).requires_grad_(False), "pcgrad")


def test_frozen_parameters_are_left_out():
    model = Loss(SHAPES)
    model.two.requires_grad_(False)
    assert Surgeon(model, "mgs-tensor").groups == ("one", "three", "scalar")


@pytest.mark.parametrize("answer", [torch.ones(2), torch.full((4, 3), float("nan"))])
def test_weights_of_a_wrong_shape_or_value_are_refused(answer):
    with pytest.raises(StrategyError, match=r"must give one finite weight per group and domain, shape \(4, 3\)"):
        run(domains(3), grouping="tensor", weighting=lambda gram_GDD: answer)


def test_state_continues_the_random_orders():
    model = Loss(SHAPES)
    surgeon = Surgeon(model, "mgs-tensor", seed=5)
    for seed in range(3):
        collect(surgeon, model, domains(4, seed=seed))
        surgeon.combine()
        model.zero_grad()
    other = Loss(SHAPES)
    resumed = Surgeon(other, "mgs-tensor")
    resumed.load_state_dict(surgeon.state_dict())
    for one, at in ((surgeon, model), (resumed, other)):
        collect(one, at, domains(4, seed=7))
    first, second = surgeon.combine(), resumed.combine()
    assert first.step == second.step == 3
    assert torch.equal(first.weights_GD, second.weights_GD)


def test_state_of_another_strategy_or_model_is_refused():
    state = Surgeon(Loss(SHAPES), "mgs-tensor").state_dict()
    with pytest.raises(StrategyError, match="saved with the strategy 'mgs-tensor', and the Surgeon has 'pcgrad'"):
        Surgeon(Loss(SHAPES), "pcgrad").load_state_dict(state)
    with pytest.raises(StrategyError, match=r"4 groups and the Surgeon 2, differing in scalar, three"):
        Surgeon(Loss({"one": (2,), "two": (2,)}), "mgs-tensor").load_state_dict(state)


def test_surgery_in_a_training_loop_helps_the_domains_it_should():
    """Two quadratic losses that fight over one coordinate: PCGrad's update hurts neither domain, the sum hurts one."""
    gradients_D = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([-3.0, 1.0])}}

    def update(strategy: str) -> Tensor:
        model = Loss({"w": (2,)}, torch.float32)
        surgeon = Surgeon(model, strategy)
        collect(surgeon, model, gradients_D)
        surgeon.combine()
        return model.w.grad

    assert update("mixed") @ gradients_D["a"]["w"] < 0
    assert update("pcgrad") @ gradients_D["a"]["w"] >= 0
    assert update("pcgrad") @ gradients_D["b"]["w"] >= 0
