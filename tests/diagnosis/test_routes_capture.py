"""Contributions of neurons and heads against ablating each, in float64; hooks that never stay."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from counterpoint.diagnosis._contributions import activity_of, predicting, sites_of
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, collate
from counterpoint.errors import CounterpointError, ModelError, UnsupportedError

SMALL = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(**overrides):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL | overrides)).double()


def rollouts(groups=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for i in range(2 * groups):
        ids = torch.randint(3, 12, (8,), generator=generator).tolist()
        items.append(Rollout(i // 2, tuple(ids[: 2 + i % 3]), tuple(ids[: 1 + i % 4]), 0.0, 0.0))
    return Rollouts("math", tuple(items))


def measure(model, items=None, **options):
    return activity_of(model, sites_of(model), items or rollouts(), **{"pad_id": 0, "batch_size": 4} | options)


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def output_change(model, projection, columns, items):
    """How much the projection's output changes without these columns of its weight, where tokens are predicted."""
    batch = collate(items.items, 0)

    def output():
        heard = []
        handle = projection.register_forward_hook(lambda module, args, out: heard.append(out))
        with torch.no_grad():
            model.eval()(input_ids=batch.ids_BT, attention_mask=batch.attention_BT.long())
        handle.remove()
        return heard[0][predicting(batch)]

    whole, weight = output(), projection.weight.data.clone()
    projection.weight.data[:, columns] = 0
    without = output()
    projection.weight.data.copy_(weight)
    return (whole - without).norm(dim=-1).mean().item()


@pytest.mark.parametrize("overrides", [{}, {"head_dim": 6}, {"num_key_value_heads": 4}], ids=["grouped", "wide", "all"])
def test_contributions_are_what_ablation_takes_away(overrides):
    model, items = llama(**overrides), rollouts()
    activity = measure(model, items)
    neurons, heads = activity.mean("neuron"), activity.mean("head")
    for number, layer in enumerate(model.model.layers):
        for i in range(10):
            expected = output_change(model, layer.mlp.down_proj, [i], items)
            assert neurons[number * 10 + i].item() == pytest.approx(expected, rel=1e-9)
        width = layer.self_attn.o_proj.weight.shape[1] // 4
        for h in range(4):
            columns = list(range(h * width, (h + 1) * width))
            expected = output_change(model, layer.self_attn.o_proj, columns, items)
            assert heads[number * 4 + h].item() == pytest.approx(expected, rel=1e-9)


def test_batches_and_padding_change_nothing():
    model = llama()
    alone, together = measure(model, batch_size=1), measure(model, batch_size=50)
    torch.testing.assert_close(alone.neurons_KN, together.neurons_KN, rtol=1e-10, atol=0)
    torch.testing.assert_close(alone.heads_KH, together.heads_KH, rtol=1e-10, atol=0)


def test_the_positions_are_those_whose_logits_predict_completion_tokens():
    items = rollouts()
    batch = collate(items.items, 0)
    for row, item in zip(predicting(batch), items.items, strict=True):
        start = len(item.prompt_ids)
        assert row.nonzero().squeeze(1).tolist() == list(range(start - 1, start - 1 + len(item.completion_ids)))
    assert int(measure(llama(), items).tokens_K.sum()) == sum(len(item.completion_ids) for item in items.items)


def test_the_token_that_ends_a_completion_is_not_read_and_the_last_prompt_token_is():
    def ending(prompt, token):
        return Rollouts("math", tuple(Rollout(i, (3, prompt), (5, 6, token), 0.0, 0.0) for i in range(2)))

    model = llama()
    usual = measure(model, ending(4, 2)).neurons_KN
    torch.testing.assert_close(measure(model, ending(4, 9)).neurons_KN, usual)
    assert (measure(model, ending(7, 2)).neurons_KN - usual).abs().max() > 1e-3


def test_every_half_is_summed_by_itself():
    model, items = llama(), rollouts(5)
    whole = measure(model, items)
    for number, half in enumerate(items.split()):
        torch.testing.assert_close(whole.mean("neuron", number), measure(model, half).mean("neuron"))
        torch.testing.assert_close(whole.mean("head", number), measure(model, half).mean("head"))


def test_hooks_are_removed_and_the_mode_is_restored():
    model = llama().train()
    measure(model)
    assert hooks(model) == 0
    assert model.training


def test_an_error_in_the_middle_leaves_no_hook():
    model = llama().train()
    sites, calls = sites_of(model), []

    def stop(count):
        calls.append(hooks(model))
        raise RuntimeError("stopped by the test")

    with pytest.raises(RuntimeError, match="stopped"):
        activity_of(model, sites, rollouts(), pad_id=0, on_batch=stop)
    assert calls == [len(sites.sites)], "the test must meet hooks that are there"
    assert hooks(model) == 0
    assert model.training


def test_no_gradients_are_kept():
    model = llama()
    assert not measure(model).neurons_KN.requires_grad
    assert all(p.grad is None for p in model.parameters())


GPT2 = GPT2Config(
    vocab_size=12, n_embd=16, n_layer=2, n_head=4, n_positions=16, n_inner=10, bos_token_id=1, eos_token_id=2
)
OTHERS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures(name):
    torch.manual_seed(0)
    model = OTHERS[name]()
    sites, activity = sites_of(model), measure(model)
    assert sites.neuron_layers_N.tolist() == [0] * 10 + [1] * 10
    assert sites.head_layers_H.tolist() == [0] * 4 + [1] * 4
    assert (activity.neurons_KN.sum(0) > 0).all()


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_adapters_count_as_if_merged():
    peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")
    config = peft.LoraConfig(
        r=2, target_modules=["down_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(llama(), config).double()
    adapted = measure(model)
    merged = measure(model.merge_and_unload())
    torch.testing.assert_close(adapted.neurons_KN, merged.neurons_KN)
    torch.testing.assert_close(adapted.heads_KH, merged.heads_KH)


def test_half_precision_is_near_float64():
    model = llama()
    exact = measure(model).mean("neuron")
    rounded = measure(model.bfloat16()).mean("neuron")
    assert ((rounded - exact).abs() / exact.mean()).max() < 0.05


def test_a_model_without_known_neurons_is_refused():
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))
    with pytest.raises(UnsupportedError, match="MixtralForCausalLM has no dense MLP"):
        sites_of(model)
    with pytest.raises(ModelError, match="Linear has no configuration of transformers"):
        sites_of(torch.nn.Linear(2, 2))


def test_heads_that_do_not_divide_their_projection_are_refused():
    model = llama()
    model.config.num_attention_heads = 3
    with pytest.raises(UnsupportedError, match="16 inputs cannot be divided among the 3 heads"):
        sites_of(model)


def test_numbers_that_overflow_are_named():
    model = llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CounterpointError, match="Layer 1: contributions of neurons are not finite"):
        measure(model)
    assert hooks(model) == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_memory_that_does_not_suffice_names_the_option(monkeypatch, error):
    model = llama()

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(CounterpointError, match="for 4 completions at once"):
        measure(model, batch_size=4, items=rollouts(1 + 8 * 2))
    assert hooks(model) == 0
