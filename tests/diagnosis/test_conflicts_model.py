"""Conflicts of a real, tiny model in float64 against brute force; metrics, memory, refusals."""

import dataclasses
import json
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from conflicts_helpers import Planted
from counterpoint.diagnosis._adam import adam_metric, read_optimizer
from counterpoint.diagnosis._split_grams import PolicyGradients, collect, splits_of
from counterpoint.diagnosis._surrogates import policy_loss
from counterpoint.diagnosis.conflicts import conflicts_of, measure
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, collate, with_advantages
from counterpoint.errors import CounterpointError, GroupingError, ModelError


def tiny(dtype=torch.float64):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype)


def rollouts(domain, prompts=6, samples=3, seed=0, dull=0):
    """Random completions with rewards 0 and 1; the first ``dull`` prompts have one reward throughout."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high):
        return tuple(torch.randint(2, 20, (int(torch.randint(low, high, (1,), generator=generator)),)).tolist())

    torch.manual_seed(seed)
    items = []
    for group in range(prompts):
        prompt = ids(2, 4)
        rewards = [1.0] * samples if group < dull else [float(i == group % samples) for i in range(samples)]
        items += [Rollout(group, prompt, ids(1, 5), reward, 0.0) for reward in rewards]
    return Rollouts(domain, with_advantages(items))


def two_domains(**settings):
    return {"math": rollouts("math", seed=1, **settings), "code": rollouts("code", seed=2, **settings)}


def brute_force(model, items):
    model.zero_grad()
    policy_loss(model, collate(items, 0)).backward()
    found = {name: param.grad.clone() / len(items) for name, param in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def prompt_of(domain, group):
    return [item for item in domain.items if item.group == group]


def vectors(model, domains, keep, scale=None):
    """Per domain and batch (one prompt each) the gradient of the parameters that ``keep`` takes, as one vector."""
    found = []
    for domain in domains.values():
        for group in range(domain.num_groups):
            gradient = brute_force(model, prompt_of(domain, group))
            found.append(
                torch.cat([(g * (scale[n] if scale else 1)).flatten() for n, g in gradient.items() if keep(n)])
            )
    return torch.stack(found)


def test_grams_against_gradients_computed_one_by_one():
    model, domains = tiny().eval(), two_domains()
    (gram,) = collect(PolicyGradients(model, domains, 6, rows=2), 6)
    for grouping, group, keep in [
        ("global", "global", lambda name: True),
        ("layer", "layers.1", lambda name: "layers.1." in name),
        ("module", "layers.0.mlp", lambda name: "layers.0.mlp" in name or "layers.0.post" in name),
        ("tensor", "model.embed_tokens.weight", lambda name: "embed" in name),
    ]:
        index = gram.units.index(grouping)
        at = index.index_U == index.groups.index(group)
        flat = vectors(model, domains, keep)
        torch.testing.assert_close(gram.grams_USS[at].sum(0), flat @ flat.T, rtol=1e-9, atol=1e-14)


def test_batches_are_gathered_in_splits():
    model, domains = tiny().eval(), two_domains(prompts=8)
    fine, coarse = (collect(PolicyGradients(model, domains, 8), k)[0].grams_USS for k in (8, 4))
    # split k holds batches k and k + 4
    mean = torch.zeros(8, 16, dtype=torch.float64)
    for split in range(8):
        mean[split, (split // 4) * 8 + split % 4] = mean[split, (split // 4) * 8 + split % 4 + 4] = 0.5
    torch.testing.assert_close(coarse, mean @ fine @ mean.T)


def test_little_memory_takes_more_passes_and_gives_the_same():
    source = Planted(noise=1.0)
    whole = measure(source)[0]
    assert {len(names) for *_, names in source.calls} == {len(source.shapes)}, "one pass over everything"
    source.calls.clear()
    parts = measure(source, memory_gib=100 * 48 * 4 / 2**30)[0]
    assert len(source.calls) == 8 * 48, "a hundred of 744 weights in 48 sums at a time"
    for a, b in zip(whole.groupings, parts.groupings, strict=True):
        torch.testing.assert_close(a.debiased_GQ, b.debiased_GQ, equal_nan=True)


def test_progress_counts_every_batch_of_every_domain():
    seen = []
    measure(Planted(batches=4), groupings=("global",), on_progress=lambda *at: seen.append(at))
    assert seen == [("gradients", i, 12) for i in range(1, 13)]


def trained(model, groups):
    """The state of AdamW after two steps on random gradients."""
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-6)
    for _ in range(2):
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return optimizer


def trainers_groups(model):
    """As transformers' Trainer has them: with weight decay first, norms and biases second."""
    params = dict(model.named_parameters())
    return [
        {"params": [p for n, p in params.items() if "norm" not in n], "weight_decay": 0.1},
        {"params": [p for n, p in params.items() if "norm" in n], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("groups", [lambda model: model.parameters(), trainers_groups], ids=["one", "two"])
def test_cosines_after_adam_against_explicit_vectors(groups, tmp_path):
    model, domains = tiny().eval(), two_domains()
    optimizer = trained(model, groups(model))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = read_optimizer(tmp_path)
    found = conflicts_of(model, domains, batches=6, optimizer_state=state)
    scale = {}
    for name, param in model.named_parameters():
        v = optimizer.state[param]["exp_avg_sq"] / (1 - 0.99**2)
        scale[name] = (1 / (v.sqrt() + 1e-6)).sqrt()
    for metric, weights in (("gradient", None), ("adam", scale)):
        flat = vectors(model, domains, lambda name: "layers.1.mlp" in name or "layers.1.post" in name, weights)
        expected = torch.cosine_similarity(flat[:6].mean(0), flat[6:].mean(0), dim=0)
        modules = found.metric(metric).grouping("module")
        cosine = modules.cosine_GQ[modules.groups.index("layers.1.mlp"), 0]
        assert float(cosine) == pytest.approx(float(expected), rel=1e-5)


def test_weights_that_never_had_a_gradient_take_no_part_after_adam():
    state = {
        "state": {0: {"step": 1, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.tensor([0.0, 4.0])}},
        "param_groups": [{"params": [0], "betas": (0.9, 0.999), "eps": 1e-8}],
    }
    metric = adam_metric(state, {"w": (2,)})["w"]
    assert metric.tolist() == pytest.approx([0, 1 / (4 / 0.001) ** 0.5])


def test_optimizer_states_that_do_not_fit_are_refused(tmp_path):
    model = tiny()
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    state = trained(model, model.parameters()).state_dict()
    with pytest.raises(
        ModelError, match=r"does not fit the model: 'model\.layers\.0\.mlp\.gate_proj\.weight' has shape"
    ):
        adam_metric(state, shapes | {"model.layers.0.mlp.gate_proj.weight": (8, 8)})
    with pytest.raises(ModelError, match="of 20 parameters and the model trains 19"):
        adam_metric(state, dict(list(shapes.items())[1:]))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    with pytest.raises(ModelError, match="not Adam's"):
        adam_metric(sgd, shapes)
    with pytest.raises(ModelError, match=r"there is no optimizer\.pt here"):
        read_optimizer(tmp_path)
    torch.save({"model": 1}, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="is no optimizer state"):
        read_optimizer(tmp_path)


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return (open, ("/nonexistent/written", "w"))


def test_an_optimizer_file_never_runs_code(tmp_path):
    torch.save({"state": Runs(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(ModelError, match="Only tensors and numbers are accepted"):
        read_optimizer(tmp_path)


def test_too_few_prompts_are_refused_with_the_number_needed():
    domains = {"math": rollouts("math", prompts=12, dull=6), "code": rollouts("code", prompts=12)}
    with pytest.raises(
        CounterpointError, match=r"'math' has 6 prompts whose .* \(of 12\), and 8 batches .* at least 8"
    ):
        conflicts_of(tiny(), domains, batches=8)
    with pytest.raises(CounterpointError, match="sample about 19 prompts, or ask for fewer batches"):
        conflicts_of(tiny(), domains, batches=8)
    with pytest.raises(CounterpointError, match="batches=3 cannot tell conflict from noise"):
        conflicts_of(tiny(), domains, batches=3)
    with pytest.raises(CounterpointError, match="between two domains; found math"):
        conflicts_of(tiny(), {"math": domains["math"]}, batches=4)


def test_the_number_of_splits_divides_the_batches():
    assert [splits_of(n) for n in (4, 8, 16, 24, 64)] == [4, 8, 16, 12, 16]
    for number in (0, 3, 17):
        with pytest.raises(CounterpointError, match=f"batches={number} cannot tell conflict from noise"):
            splits_of(number)


def test_bad_groupings_and_frozen_models_are_refused_before_any_gradient():
    source = Planted()
    with pytest.raises(GroupingError, match="Unknown grouping 'modul': did you mean 'module'"):
        measure(source, groupings=("modul",))
    assert source.calls == []
    with pytest.raises(ModelError, match="No parameter of the model requires a gradient"):
        conflicts_of(tiny().requires_grad_(False), two_domains(), batches=6)


def test_a_gradient_that_is_no_number_is_named():
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(CounterpointError, match="The gradient of the domain 'math' holds NaN or Inf in 'model"):
        conflicts_of(model, two_domains(), batches=6)


def test_the_model_is_left_as_it_was():
    model = tiny().train()
    model.model.layers[0].mlp.up_proj.weight.grad = torch.ones(6, 8, dtype=torch.float64)
    before = {name: param.clone() for name, param in model.named_parameters()}
    conflicts_of(model, two_domains(), batches=6, groupings=("global",))
    assert model.training
    assert all(torch.equal(before[name], param) for name, param in model.named_parameters())
    assert bool((model.model.layers[0].mlp.up_proj.weight.grad == 1).all())
    assert model.lm_head.weight.grad is None


def test_prompts_that_teach_nothing_are_left_out_and_counted():
    domains = two_domains(prompts=10, dull=2)
    found = conflicts_of(tiny(), domains, batches=8, groupings=("global",))
    assert found.prompts == (8, 8)
    assert found.completions == (24, 24)


def test_results_become_json_with_axes_in_their_names():
    found = conflicts_of(tiny(), two_domains(), batches=6)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["schema"] == "counterpoint.conflicts"
    (metric,) = written["metrics"]
    assert [g["grouping"] for g in metric["groupings"]] == ["module", "global", "layer", "tensor"]
    module = metric["groupings"][0]
    assert len(module["cosine_GQ"]) == len(module["groups"])
    assert module["pairs"] == [["math", "code"]]


def test_frozen_results():
    found = conflicts_of(tiny(), two_domains(), batches=6, groupings=("global",))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.level = 0.1
    assert found == found
    assert found.by == "global"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")])
def test_memory_that_does_not_suffice_names_both_options(monkeypatch, error):
    model = tiny()

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(model.model, "forward", full)
    with pytest.raises(CounterpointError, match=r"rows=32 .* memory_gib=4 .* Lower either"):
        conflicts_of(model, two_domains(), batches=6)


def test_one_number_by_name():
    found = conflicts_of(tiny(), two_domains(), batches=6)
    modules = found.metric().grouping("module")
    at = (modules.groups.index("layers.1.mlp"), 0)
    one, other = found.cosine("layers.1.mlp", "math", "code"), found.cosine("layers.1.mlp", "code", "math")
    assert str(one) == str(other), "NaN where noise hides it"
    assert str(one.value) == str(float(modules.debiased_GQ[at]))
    assert found.verdict("global", "math", "code") == "within noise"
    with pytest.raises(CounterpointError, match=r"no group 'layers\.1\.mpl'; did you mean 'layers\.1\.mlp'"):
        found.cosine("layers.1.mpl", "math", "code")
    with pytest.raises(CounterpointError, match="'math' and 'qa' are no pair; domains: math, code"):
        found.cosine("global", "math", "qa")


def test_a_large_tensor_is_cut_into_passes_within_the_memory():
    largest = []

    class Counting(Planted):
        def gradients(self, domain, batch, names):
            largest.append(sum(math.prod(self.shapes[name]) for name in names))
            return super().gradients(domain, batch, names)

    source = Counting(layers=1, hidden=20, neurons=300)
    few = collect(source, 16, memory_gib=1000 * 48 * 4 / 2**30)[0]
    assert max(largest) >= 6000 > 1000, "one tensor is larger than what fits"
    torch.testing.assert_close(few.grams_USS, collect(source, 16)[0].grams_USS, rtol=1e-10, atol=1e-12)
