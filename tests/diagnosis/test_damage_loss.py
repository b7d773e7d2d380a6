"""The surrogate loss of a domain, its Gauss-Newton and Fisher terms, against sums over single tokens."""

import itertools

import pytest
import torch

from counterpoint.diagnosis._curvature import along, check_deterministic, displaced, losses
from counterpoint.diagnosis._surrogates import (
    check_signal,
    fisher_along,
    fisher_form,
    text_loss,
    with_baseline,
)
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, with_advantages
from counterpoint.errors import CounterpointError, UnsupportedError

VOCAB = 7


class Tiny(torch.nn.Module):
    """A bigram model with a hidden layer (126 parameters), or without one: then logits are linear in the weights."""

    def __init__(self, hidden=True, dropout=0.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.hidden, self.dropout = hidden, dropout
        self.device = torch.device("cpu")
        self.table = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64))
        self.mix = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        x = self.table[input_ids]
        x = torch.nn.functional.dropout(x, self.dropout)

        class Output:
            logits = torch.tanh(x) @ self.mix if self.hidden else x

        return Output


def rollouts(prompts=10, samples=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for group, _ in itertools.product(range(prompts), range(samples)):
        length = int(torch.randint(1, 4, (1,), generator=generator))
        ids = tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist())
        reward = float(torch.rand(1, generator=generator)) if group else 1.0
        items.append(Rollout(group, (1, 2 + group % 3), ids, reward, 0.0))
    return Rollouts("math", with_advantages(items))


def edit_of(model, seed=3, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()}


def steps(item):
    return list(itertools.pairwise([item.prompt_ids[-1], *item.completion_ids]))


def logits_of(model):
    return model(torch.arange(VOCAB), None).logits


@pytest.mark.parametrize("surrogate", ["policy", "likelihood"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_measured_damage_is_the_mean_over_tokens(surrogate, batch_size):
    model, data = Tiny(), rollouts()
    text = text_loss(model, data, surrogate, batch_size=batch_size)
    old = logits_of(model).log_softmax(-1).detach()
    edit = edit_of(model)
    before = losses(text.loss)
    with displaced(text.loss.params, edit):
        found = ((losses(text.loss) - before).sum() / text.loss.units_P.sum()).item()
        new = logits_of(model).log_softmax(-1).detach()
    values, count = 0.0, 0
    for item in data.items:
        for a, b in steps(item):
            if surrogate == "policy":
                values -= item.advantage * (float((new - old)[a, b].exp()) - 1)
                count += 1
            elif item.advantage > 0:
                values -= float((new - old)[a, b])
                count += 1
    assert found == pytest.approx(values / count, rel=1e-5)
    assert text.informative == 9
    assert {piece.prompt for piece in text.loss.pieces} == set(range(1, 10))


def test_derivatives_do_not_depend_on_how_completions_are_batched():
    model, data = Tiny(), rollouts()
    edit = edit_of(model)
    values = [along(text_loss(model, data, batch_size=size).loss, {"d": edit}).second["d"] for size in (1, 3, 8)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(values[0], values[2], rtol=1e-5, atol=1e-9)


def test_the_fisher_term_against_the_explicit_sum():
    model, data = Tiny(), rollouts()
    edit = edit_of(model)
    found = fisher_along(text_loss(model, data), edit)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def logits(table, mix):
        return torch.tanh(table) @ mix

    _, change = torch.autograd.functional.jvp(logits, (params["table"], params["mix"]), (edit["table"], edit["mix"]))
    logs = logits(params["table"], params["mix"]).log_softmax(-1)
    expected = torch.zeros(10, dtype=torch.float64)
    for item in data.items:
        for a, _ in steps(item):
            for v in range(VOCAB):  # E over the policy of (d . grad log pi)^2
                score = change[a, v] - (logs[a].exp() * change[a]).sum()
                expected[item.group] += logs[a, v].exp() * score**2
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_half_the_fisher_term_is_the_leading_term_of_the_divergence():
    model, data = Tiny(), rollouts()
    edit = edit_of(model, scale=1e-4)
    text = text_loss(model, data)
    fisher = 0.5 * float(fisher_along(text, edit).sum())
    old = logits_of(model).log_softmax(-1).detach()
    with displaced(text.loss.params, edit):
        new = logits_of(model).log_softmax(-1).detach()
    divergence = sum(float((old[a].exp() * (old - new)[a]).sum()) for item in data.items for a, _ in steps(item))
    assert divergence == pytest.approx(fisher, rel=1e-3)


def test_fisher_of_a_constant_shift_of_the_logits_is_zero():
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    assert fisher_form(logits, torch.full((4, VOCAB), 3.0)).item() == pytest.approx(0, abs=1e-12)


def test_a_model_with_dropout_is_refused():
    text = text_loss(Tiny(dropout=0.5), rollouts())
    with pytest.raises(UnsupportedError, match="not deterministic"):
        check_deterministic(text.loss)
    check_deterministic(text_loss(Tiny(), rollouts()).loss)


def test_the_domain_as_baseline_gives_every_prompt_a_signal():
    data = with_baseline(rollouts(), "domain")
    advantages = torch.tensor([item.advantage for item in data.items], dtype=torch.float64)
    assert advantages.mean().item() == pytest.approx(0, abs=1e-12)
    assert advantages.std(correction=0).item() == pytest.approx(1)
    assert data.informative.num_groups == 10
    assert with_baseline(rollouts(), "prompt") == rollouts()
    same = Rollouts("math", tuple(Rollout(g, (1,), (2,), 1.0, 0.0) for g in range(10)))
    assert {item.advantage for item in with_baseline(same, "domain").items} == {1.0}  # solved: all can be lost
    hopeless = Rollouts("math", tuple(Rollout(g, (1,), (2,), 0.0, 0.0) for g in range(10)))
    assert with_baseline(hopeless, "domain").informative.num_groups == 0


def test_too_few_prompts_say_how_many_are_needed():
    expected = r"'math' has a signal in 4 of 5 prompts, and at least 8 are needed .*more samples.*baseline='domain'"
    with pytest.raises(CounterpointError, match=expected):
        check_signal(rollouts(prompts=5))
