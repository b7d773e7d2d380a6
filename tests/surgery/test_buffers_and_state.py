"""What the Surgeon promises about memory, types, refusals and its state."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from counterpoint.errors import StrategyError, UnsupportedError
from counterpoint.surgery import Surgeon


def test_low_precision_gradients_keep_their_type(toy):
    gradients_D = toy.domains(3, dtype=torch.bfloat16)
    found, record, _ = toy.run(gradients_D, "pcgrad")
    exact = toy.flat(
        {
            n: sum(w * g[n].double() for w, g in zip(record.weights_GD[0], gradients_D.values(), strict=True))
            for n in toy.SHAPES
        },
        list(toy.SHAPES),
    )
    assert found["one"].dtype == torch.bfloat16
    torch.testing.assert_close(toy.flat(found, list(toy.SHAPES)).double(), exact, rtol=2**-8, atol=1e-3)
    wide = torch.stack([toy.flat(gradients, list(toy.SHAPES)).double() for gradients in gradients_D.values()])
    torch.testing.assert_close(record.gram_GDD[0], wide @ wide.T, rtol=1e-6, atol=1e-6)


def test_gradient_tensors_are_taken_over_not_copied(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "pcgrad")
    pointers = set()
    for gradients in toy.domains(3).values():
        model.backward(gradients)
        pointers |= {p.grad.data_ptr() for p in model.parameters()}
        surgeon.collect("alpha" if not surgeon.collected else f"domain-{len(surgeon.collected)}")
        assert all(p.grad is None for p in model.parameters())
    surgeon.combine()
    assert {p.grad.data_ptr() for p in model.parameters()} < pointers


def test_at_most_one_gradient_per_domain_is_alive(toy):
    size, number = 250_007, 3
    model = toy.Loss({"weight": (size,)}, torch.float32)
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


def test_gradients_of_other_strides(toy):
    model = toy.Loss({"weight": (3, 4)})
    model.weight.grad = torch.arange(12.0, dtype=torch.float64).view(4, 3).T
    surgeon = Surgeon(model, "pcgrad")
    surgeon.collect("a")
    model.weight.grad = -torch.ones(3, 4, dtype=torch.float64)
    surgeon.collect("b")
    surgeon.combine()
    vectors = torch.stack([torch.arange(12.0).view(4, 3).T.reshape(-1), -torch.ones(12)]).double()
    gram_DD = vectors @ vectors.T
    weights = 1 - gram_DD[0, 1] / gram_DD.diagonal()
    torch.testing.assert_close(model.weight.grad.reshape(-1), weights @ vectors)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    surgeon = Surgeon(embedding, "mgs-tensor")
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match=r"gradient of 'weight' is sparse.*sparse=False"):
        surgeon.collect("a")


def test_frozen_models_are_refused(toy):
    with pytest.raises(StrategyError, match="No parameter requires a gradient"):
        Surgeon(toy.Loss(toy.SHAPES).requires_grad_(False), "pcgrad")


def test_frozen_parameters_are_left_out(toy):
    model = toy.Loss(toy.SHAPES)
    model.two.requires_grad_(False)
    assert Surgeon(model, "mgs-tensor").groups == ("one", "three", "scalar")


@pytest.mark.parametrize("answer", [torch.ones(2), torch.full((4, 3), float("nan"))])
def test_weights_of_a_wrong_shape_or_value_are_refused(toy, answer):
    with pytest.raises(StrategyError, match=r"must give one finite weight per group and domain, shape \(4, 3\)"):
        toy.run(toy.domains(3), grouping="tensor", weighting=lambda gram_GDD: answer)


def test_state_continues_the_random_orders(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, "mgs-tensor", seed=5)
    for seed in range(3):
        toy.collect(surgeon, model, toy.domains(4, seed=seed))
        surgeon.combine()
        model.zero_grad()
    other = toy.Loss(toy.SHAPES)
    resumed = Surgeon(other, "mgs-tensor")
    resumed.load_state_dict(surgeon.state_dict())
    for one, at in ((surgeon, model), (resumed, other)):
        toy.collect(one, at, toy.domains(4, seed=7))
    first, second = surgeon.combine(), resumed.combine()
    assert first.step == second.step == 3
    assert torch.equal(first.weights_GD, second.weights_GD)


def test_state_of_another_strategy_or_model_is_refused(toy):
    state = Surgeon(toy.Loss(toy.SHAPES), "mgs-tensor").state_dict()
    with pytest.raises(StrategyError, match="saved with the strategy 'mgs-tensor', and the Surgeon has 'pcgrad'"):
        Surgeon(toy.Loss(toy.SHAPES), "pcgrad").load_state_dict(state)
    with pytest.raises(StrategyError, match=r"4 groups and the Surgeon 2, differing in scalar, three"):
        Surgeon(toy.Loss({"one": (2,), "two": (2,)}), "mgs-tensor").load_state_dict(state)
