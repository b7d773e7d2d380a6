"""PCGrad on averaged conflicts."""

import json

import pytest
import torch

from counterpoint.errors import StrategyError
from counterpoint.surgery import Context, Surgeon, build_weighting
from counterpoint.surgery.weightings.averages import PairAverages
from counterpoint.surgery.weightings.pcgrad import pcgrad

NAMES = tuple("abcde")


def gradients(num_domains: int, seed: int, size: int = 6) -> torch.Tensor:
    return torch.randn(num_domains, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(vectors_DP: torch.Tensor) -> torch.Tensor:
    return (vectors_DP @ vectors_DP.T).unsqueeze(0)


def context(domains: tuple[str, ...], step: int = 0) -> Context:
    return Context(("g",), domains, 0, step)


def ema(decay: float = 0.9, **options: object):
    return build_weighting({"type": "ema", "decay": decay, **options})


def history(steps: int, present=lambda step: NAMES[:3]) -> list[tuple[torch.Tensor, Context]]:
    """Gradients with a lasting conflict between a and b under much noise."""
    found = []
    for step in range(steps):
        domains = present(step)
        vectors_DP = gradients(5, seed=step)
        vectors_DP[:, 0] += torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0])
        found.append((gram(vectors_DP[[NAMES.index(d) for d in domains]]), context(domains, step)))
    return found


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_equals_the_formula_written_out(decay):
    weighting = ema(decay)
    cosines: list[torch.Tensor] = []
    for gram_GDD, now in history(6):
        norm_D = gram_GDD[0].diagonal().sqrt()
        cosines.append(gram_GDD[0] / norm_D.outer(norm_D))
        powers = torch.tensor([decay**age for age in reversed(range(len(cosines)))], dtype=torch.float64)
        average_DD = (torch.stack(cosines) * powers[:, None, None]).sum(0) / powers.sum()
        expected = pcgrad((average_DD * norm_D.outer(norm_D))[None], now)
        torch.testing.assert_close(weighting(gram_GDD, now), expected, rtol=1e-12, atol=1e-12)


def test_without_memory_and_in_the_first_step_it_is_pcgrad():
    weighting = ema(0.0)
    for gram_GDD, now in history(5):
        torch.testing.assert_close(weighting(gram_GDD, now), pcgrad(gram_GDD, now), rtol=1e-12, atol=1e-12)
    gram_GDD, now = history(1)[0]
    torch.testing.assert_close(ema(0.99)(gram_GDD, now), pcgrad(gram_GDD, now), rtol=1e-12, atol=1e-12)


def test_no_averaged_conflict_gives_exact_ones():
    weighting = ema(0.9)
    allied = gradients(3, seed=1).abs()
    for step in range(10):
        assert weighting(gram(allied), context(NAMES[:3], step)).eq(1).all()
    allied[1] *= -1  # one step's conflict does not outweigh ten steps' harmony
    assert not pcgrad(gram(allied), context(NAMES[:3])).eq(1).all()
    assert weighting(gram(allied), context(NAMES[:3], 10)).eq(1).all()


def test_a_lasting_conflict_is_treated_in_a_step_without_one():
    weighting = ema(0.9)
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    for step in range(10):
        weighting(gram(opposed), context(NAMES[:2], step))
    assert (weighting(gram(opposed.abs()), context(NAMES[:2], 10)) > 1).all()


def test_long_gradients_of_one_step_do_not_outvote_the_others():
    """The control: in an average of Grams they do."""
    allied, opposed = gradients(2, seed=1).abs(), gradients(2, seed=2).abs()
    opposed[1] *= -1
    weighting, last = ema(0.9), gram(allied)
    for step in range(10):
        vectors_DP = 100 * opposed if step == 5 else allied
        weights_GD = weighting(gram(vectors_DP), context(NAMES[:2], step))
        last = 0.9 * last + 0.1 * gram(vectors_DP)
    assert weights_GD.eq(1).all()
    assert last[0, 0, 1] < 0


def test_the_scale_of_a_step_does_not_matter():
    one, other = ema(), ema()
    for gram_GDD, now in history(8):
        factor = 1e12 if now.step % 2 else 1e-12
        torch.testing.assert_close(one(gram_GDD, now), other(factor * gram_GDD, now), rtol=1e-12, atol=1e-12)


def test_one_domains_scale_changes_no_projection():
    """Weights of rescaled gradients give every domain's part of the update rescaled with it."""
    vectors_DP = torch.tensor([[1.0, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    weights_D = ema()(gram(vectors_DP), context(NAMES[:2]))[0]
    found_D = ema()(gram(vectors_DP * torch.tensor([[1.0], [10.0]])), context(NAMES[:2]))[0]
    # a's projection against b: w_b - 1 is measured in b, so it shrinks tenfold; b's against a grows tenfold.
    torch.testing.assert_close((found_D - 1) * torch.tensor([0.1, 10.0]), weights_D - 1)


def test_names_in_another_order_give_the_same_weights():
    """Two domains: nothing is drawn, so the permuted weights are equal and not only equally distributed."""
    one, other = ema(), ema()
    for gram_GDD, now in history(8, lambda step: NAMES[:2]):
        swapped = other(gram_GDD.flip(1, 2), context(("b", "a"), now.step))
        torch.testing.assert_close(one(gram_GDD, now), swapped.flip(1), rtol=1e-12, atol=1e-12)


def test_absent_domains_keep_their_average():
    everyone = history(4, lambda step: NAMES[:3])
    weighting, twin = ema(), ema()
    for gram_GDD, now in everyone[:2]:
        weighting(gram_GDD, now)
        twin(gram_GDD, now)
    for gram_GDD, now in history(10, lambda step: ("c", "d")):  # of the pairs of the others nothing is seen
        weighting(gram_GDD, now)
    gram_GDD, now = everyone[2]
    assert torch.equal(
        weighting(gram_GDD[:, :2, :2], context(NAMES[:2])), twin(gram_GDD[:, :2, :2], context(NAMES[:2]))
    )


def test_a_group_without_gradient_is_not_averaged_in():
    weighting, twin = ema(), ema()
    gram_GDD, now = history(1)[0]
    weighting(gram_GDD, now)
    twin(gram_GDD, now)
    assert weighting(torch.zeros_like(gram_GDD), now).eq(1).all()
    assert torch.equal(weighting(gram_GDD, now), twin(gram_GDD, now))


@pytest.mark.parametrize("through", [lambda state: state, lambda state: json.loads(json.dumps(state))])
def test_resumed_equals_uninterrupted(through):
    def present(step: int) -> tuple[str, ...]:
        return NAMES[:3] if step % 2 else ("b", "d", "e")

    whole = ema(protect=["a"])
    expected = [whole(*entry) for entry in history(9, present)]
    first, second = ema(protect=["a"]), ema(protect=["a"])
    for entry in history(9, present)[:4]:
        first(*entry)
    second.load_state_dict(through(first.state_dict()))
    assert all(
        torch.equal(second(*entry), weights)
        for entry, weights in zip(history(9, present)[4:], expected[4:], strict=True)
    )
    assert second.state_dict() == whole.state_dict()


def test_an_empty_state_can_be_put_back():
    weighting = ema()
    weighting(*history(1)[0])
    weighting.load_state_dict(json.loads(json.dumps(ema().state_dict())))
    assert weighting.state_dict() == ema().state_dict()


def test_the_protected_win_on_average():
    """After ten steps of conflict a is still protected in a step whose own Gram has none."""
    opposed = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weighting = ema(protect=["a"])
    for step in range(10):
        weights_GD = weighting(gram(opposed), context(NAMES[:2], step))
    torch.testing.assert_close(weights_GD, torch.tensor([[2.0, 1.0]], dtype=torch.float64))


def test_one_object_belongs_to_one_model():
    weighting = ema()
    weighting(gram(gradients(2, seed=0)), Context(("g",), NAMES[:2]))
    with pytest.raises(StrategyError, match="memory of 1 groups was called with 1 others: make one for each Surgeon"):
        weighting(gram(gradients(2, seed=0)), Context(("h",), NAMES[:2]))


def test_the_global_random_state_is_untouched_and_twins_agree():
    before = torch.get_rng_state()
    one, other = ema(), ema()
    for entry in history(6, lambda step: NAMES):
        assert torch.equal(one(*entry), other(*entry))
    assert torch.equal(before, torch.get_rng_state())


def test_averages_count_the_steps_they_are_worth():
    averages = PairAverages(0.5, width=1)
    pair_GDD = torch.ones(1, 2, 2, dtype=torch.bool)
    for step, value in enumerate([4.0, 1.0]):
        averages.update(context(NAMES[:2], step), torch.full((1, 2, 2, 1), value, dtype=torch.float64), pair_GDD)
    average_GDDC, steps_GDD = averages.read(context(NAMES[:2]))
    assert average_GDDC[0, 0, 1, 0] == pytest.approx((0.5 * 4 + 1) / 1.5)
    assert steps_GDD[0, 0, 1] == pytest.approx(1.5**2 / 1.25)


def test_in_a_surgeon_with_checkpoints(toy):
    def run(surgeon: Surgeon, model: torch.nn.Module, steps: range) -> list[torch.Tensor]:
        updates = []
        for step in steps:
            toy.collect(surgeon, model, toy.domains(3, seed=step))
            surgeon.combine()
            updates.append(toy.flat({n: p.grad for n, p in model.named_parameters()}, list(toy.SHAPES)))
            model.zero_grad()
        return updates

    spec = {"grouping": "tensor", "weighting": "ema"}
    model = toy.Loss(toy.SHAPES)
    whole = Surgeon(model, spec)
    expected = run(whole, model, range(6))
    first = Surgeon(model, spec)
    run(first, model, range(3))
    second = Surgeon(model, spec)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found = run(second, model, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(found, expected[3:], strict=True))
    assert not torch.equal(run(Surgeon(model, spec), model, range(3, 6))[0], expected[3])
