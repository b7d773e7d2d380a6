"""The Fisher diagonal against one derivative after another, and what it says of weights that cannot matter."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from counterpoint.errors import CounterpointError
from counterpoint.recovery.masks import diagonal_fisher
from damage_helpers import made_up, make_checkpoints


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base, _ = make_checkpoints(tmp_path_factory.mktemp("fisher"))
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager").eval()


def likelihood(model, item):
    ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
    logs = model(input_ids=ids).logits[0].log_softmax(-1)
    start = len(item.prompt_ids)
    return sum(logs[start + i - 1, token] for i, token in enumerate(item.completion_ids))


def test_each_entry_is_the_mean_square_of_a_completions_derivative(model):
    rollouts = made_up("math", prompts=3, samples=2)
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"]
    found = diagonal_fisher(model, rollouts, names)
    params = dict(model.named_parameters())
    for name in names:
        params[name].requires_grad_(True)
        gradients = [torch.autograd.grad(likelihood(model, item), params[name])[0] for item in rollouts.items]
        expected = torch.stack(gradients).square().mean(0)
        assert torch.allclose(found[name].double(), expected, rtol=1e-3, atol=1e-3 * float(expected.max()))
        assert float(expected.max()) > 0
        params[name].requires_grad_(False)


def test_only_what_is_asked_for_and_no_gradient_is_left_on(model):
    found = diagonal_fisher(model, made_up("math", prompts=2, samples=1), ["model.norm.weight"])
    assert list(found) == ["model.norm.weight"]
    assert found["model.norm.weight"].dtype == torch.float32
    assert not any(param.requires_grad or param.grad is not None for param in model.parameters())


def test_a_dead_neuron_has_no_fisher(model):
    down = dict(model.named_parameters())["model.layers.0.mlp.down_proj.weight"]
    kept = down.detach().clone()
    try:
        with torch.no_grad():
            down[:, 2] = 0
        name = "model.layers.0.mlp.gate_proj.weight"
        fisher = diagonal_fisher(model, made_up("math", prompts=2), [name])[name]
    finally:
        with torch.no_grad():
            down.copy_(kept)
    assert (fisher[2] == 0).all()
    assert (fisher[[0, 1, 3]] > 0).all()


def test_gradients_that_are_no_numbers_are_named(model):
    norm = dict(model.named_parameters())["model.norm.weight"]
    kept = norm.detach().clone()
    try:
        with torch.no_grad():
            norm[0] = float("nan")
        with pytest.raises(
            CounterpointError, match=r"model\.norm\.weight: gradients on the domain 'math' are not finite"
        ):
            diagonal_fisher(model, made_up("math", prompts=2), ["model.norm.weight"])
    finally:
        with torch.no_grad():
            norm.copy_(kept)


def test_memory_that_ends_is_told_with_a_remedy(model, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("counterpoint.recovery.masks.log_probs", full)
    with pytest.raises(CounterpointError, match="Memory does not suffice for the Fisher diagonal"):
        diagonal_fisher(model, made_up("math", prompts=2), ["model.norm.weight"])
