"""The whole measurement on a small model: its numbers agree with each other, errors come early, memory may run out."""

import dataclasses
import json
import shutil
import sys

import pytest
import torch
from transformers import LlamaForCausalLM

from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.diagnosis import Damage, DamageOptions, Estimate, damage, save_rollouts
from counterpoint.diagnosis._damage_parts import reach_of
from counterpoint.diagnosis._edit_vector import edit_between, open_at
from counterpoint.diagnosis._surrogates import fisher_along, text_loss
from counterpoint.diagnosis.rollouts import Rollouts, with_advantages
from counterpoint.diagnosis.subject import config_of
from counterpoint.errors import ConfigError, CounterpointError, ModelError
from damage_helpers import made_up, make_checkpoints, make_completions, make_config

MODULE = sys.modules["counterpoint.diagnosis.damage"]  # the package exports the function under this name

OPTIONS = DamageOptions(baseline="prompt", lanczos=3, top=2, draws=2, scales=(0.5, 1.0), fraction=0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    base, after = make_checkpoints(folder)
    return {
        "folder": folder,
        "base": base,
        "after": after,
        "config": make_config(folder, base),
        "completions": make_completions(folder),
    }


def measure(place, **kwargs):
    given = {"other": "qa", "options": OPTIONS, "completions": place["completions"]} | kwargs
    return damage(place["config"], place["base"], place["after"], "math", **given)


@pytest.fixture(scope="module")
def found(place):
    return measure(place)


def test_all_parts_agree_with_each_other(found):
    assert found.stopped is None
    assert found.predicted.value == pytest.approx(found.first.value + found.second.value, rel=1e-12)
    assert found.difference.value == pytest.approx(found.measured.value - found.predicted.value, rel=1e-9)
    assert sum(row.first.value for row in found.modules) == pytest.approx(found.first.value, rel=1e-9)
    assert sum(row.second.value for row in found.modules) == pytest.approx(found.second.value, rel=1e-9)
    route = found.route
    together = route.second_on.value + route.cross.value + route.second_off.value
    assert together == pytest.approx(found.second.value, rel=1e-9)
    assert 0 < route.neurons < route.all_neurons == 24
    assert [point.scale for point in found.range.points] == [0.5, 1.0]
    assert found.range.points[1].measured == found.measured
    unchanged = {row.module: row.edit_share for row in found.modules}
    assert unchanged["layers.0.attention"] == 0


def test_fisher_is_half_of_the_quadratic_form(place, found):
    subject = open_at(config_of(place["config"]), place["base"], ["math"])
    edit = edit_between(compare(open_checkpoint(place["base"]), open_checkpoint(place["after"])), subject.model)
    tokens = 10 * 4 * 4
    assert found.tokens == tokens
    form_P = fisher_along(text_loss(subject.model, made_up("math")), edit)
    assert found.fisher.value == pytest.approx(0.5 * float(form_P.sum()) / tokens, rel=1e-4)


def test_the_prediction_fails_no_worse_than_third_order(found):
    half, full = (abs(point.difference.value) for point in found.range.points)
    assert half < full / 4, "a third order falls to an eighth at half the edit, a fourth order to a sixteenth"
    full_point = found.range.points[1]
    largest = max(abs(value.value) for value in (found.measured, found.first, found.second))
    assert full_point.error == pytest.approx(abs(found.difference.value) / largest)


def test_the_result_is_json_and_tables(found):
    read = json.loads(json.dumps(found.to_dict()))
    assert read["schema"] == "counterpoint.damage"
    assert read["options"]["surrogate"] == "policy"
    assert set(read["measured"]) == {"value", "low", "high"}
    text = str(found)
    for words in (
        "first order g.d",
        "½ d'Hd",
        "Fisher",
        "random edits",
        "By module",
        "shared neurons",
        "Along the edit",
    ):
        assert words in text
    assert "not corrected for other pairs" in text
    assert "eigen-directions" in text
    assert found == found
    assert "term" in found.to_frame().columns


def test_a_domain_that_is_nearly_solved_is_measured_by_default(place, tmp_path):
    """Five prompts of ten have completions of both rewards: too few to compare within a prompt."""
    path = tmp_path / "solved.jsonl"
    rollouts = made_up("math")
    items = [dataclasses.replace(i, reward=1.0 if i.group > 4 else i.reward) for i in rollouts.items]
    save_rollouts(path, Rollouts("math", with_advantages(items)))
    short = dataclasses.replace(OPTIONS, lanczos=0, draws=1, scales=(1.0,))
    with pytest.raises(CounterpointError, match="has a signal in 5 of 10 prompts, and at least 8 are needed"):
        measure(place, other=None, completions=path, options=short)
    found = measure(place, other=None, completions=path, options=dataclasses.replace(short, baseline="domain"))
    assert DamageOptions().baseline == "domain"
    assert found.informative == 10
    assert found.measured is not None


def test_what_a_solved_domain_loses_is_the_likelihood_of_its_completions(place, tmp_path):
    path = tmp_path / "solved.jsonl"
    rollouts = made_up("math")
    save_rollouts(path, Rollouts("math", tuple(dataclasses.replace(i, reward=1.0) for i in rollouts.items)))
    short = dataclasses.replace(OPTIONS, lanczos=0, draws=1, scales=(1.0,), baseline="domain")
    found = measure(place, other=None, completions=path, options=short)
    assert (found.informative, found.options.surrogate) == (10, "likelihood")
    config = config_of(place["config"])
    models = [open_at(config, place[name], ["math"]).model for name in ("base", "after")]
    lost = tokens = 0.0
    for item in rollouts.items:
        ids = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
        own = torch.arange(len(item.prompt_ids), ids.shape[1])
        with torch.no_grad():
            before, after = (
                m(input_ids=ids).logits[0, :-1].double().log_softmax(-1)[own - 1, ids[0, own]] for m in models
            )
        lost, tokens = lost + float((before - after).sum()), tokens + len(own)
    assert found.measured.value == pytest.approx(lost / tokens, rel=1e-4)
    assert "likelihood loss per token" in str(found)


def test_the_edit_leads_from_one_checkpoint_to_the_other(place):
    subject = open_at(config_of(place["config"]), place["base"], ["math"])
    edit = edit_between(compare(open_checkpoint(place["base"]), open_checkpoint(place["after"])), subject.model)
    after = open_at(config_of(place["config"]), place["after"], ["math"]).model.state_dict()
    assert set(edit) < set(dict(subject.model.named_parameters()))
    for name, param in subject.model.named_parameters():
        torch.testing.assert_close(param + edit.get(name, 0), after[name], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers", "ignore::FutureWarning:peft")
def test_adapters_are_merged_on_either_side(place, tmp_path):
    peft = pytest.importorskip("peft")
    plain = LlamaForCausalLM.from_pretrained(place["base"])
    adapted = peft.get_peft_model(
        plain, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_alpha=4, task_type="CAUSAL_LM")
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for name, param in adapted.named_parameters():
            if "lora_B" in name:
                param.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapters")
    config = config_of(place["config"])
    forth = edit_between(
        compare(open_checkpoint(place["base"]), open_checkpoint(tmp_path / "adapters")),
        open_at(config, place["base"], ["math"]).model,
    )
    merged = open_at(config, tmp_path / "adapters", ["math"]).model
    back = edit_between(compare(open_checkpoint(tmp_path / "adapters"), open_checkpoint(place["base"])), merged)
    assert len(forth) == 4
    assert set(forth) == set(back) < set(dict(merged.named_parameters()))
    before = LlamaForCausalLM.from_pretrained(place["base"]).state_dict()
    for name, change in forth.items():
        torch.testing.assert_close(change, -back[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(merged.state_dict()[name], before[name] + change, rtol=0, atol=1e-6)
    assert all(param.requires_grad for param in merged.parameters())


def test_progress_is_told_and_nothing_runs_that_was_not_asked_for(place):
    told = []
    options = dataclasses.replace(OPTIONS, lanczos=0)
    found = measure(place, other=None, options=options, on_progress=lambda *step: told.append(step))
    assert (found.subspace, found.route) == (None, None)
    assert {"measured", "Hessian products", "Fisher"} <= {what for what, _, _ in told}
    assert all(0 < done <= total for _, done, total in told)


def test_what_was_measured_before_memory_ran_out_is_kept(place, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(MODULE.parts, "route_part", fails)
    found = measure(place)
    assert found.stopped == (
        "Memory did not suffice for Hessian-vector products on the shared route. Lower batch_size (now 8 completions "
        "at once). What was measured before is kept."
    )
    assert found.second is not None
    assert found.route is None
    assert found.subspace is None
    monkeypatch.setattr(MODULE, "along", fails)
    found = measure(place, options=dataclasses.replace(OPTIONS, batch_size=1))
    assert "one completion already: shorten completions" in found.stopped
    assert found.measured is not None
    assert found.second is None
    assert found.verdict


def test_memory_that_ends_before_anything_was_measured_is_an_error(place, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(MODULE, "text_loss", fails)
    with pytest.raises(CounterpointError, match=r"one batch of completions\. Lower batch_size"):
        measure(place, other=None)


def test_other_errors_of_the_runtime_are_not_hidden(place, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(MODULE.parts, "route_part", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure(place)


def test_equal_checkpoints_are_said_to_be_equal(place):
    with pytest.raises(ModelError, match="hold the same weights: there is no edit"):
        damage(place["config"], place["base"], place["base"], "math", completions=place["completions"])


def test_checkpoints_of_other_shapes_are_refused_before_anything_runs(place):
    with pytest.raises(ModelError, match=r"different (shapes|architectures)"):
        damage(place["config"], place["base"], "pocket", "math", completions=place["completions"])


def test_weights_that_are_no_numbers_are_counted_and_named(place, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(place["after"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight: of 16 weights 0 are NaN or infinite in .* and 3 in"):
        damage(place["config"], place["base"], broken, "math", completions=place["completions"])


def test_an_unknown_domain_is_named_with_the_nearest(place):
    with pytest.raises(ConfigError, match="no domain 'meth'; did you mean 'math'"):
        damage(place["config"], place["base"], place["after"], "meth")
    with pytest.raises(ConfigError, match="no domain 'q'"):
        measure(place, other="q")


def test_too_few_prompts_with_a_signal_are_refused(place, tmp_path):
    path = tmp_path / "few.jsonl"
    save_rollouts(path, made_up("math", prompts=3))
    with pytest.raises(CounterpointError, match="at least 8 are needed"):
        measure(place, other=None, completions=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surrogate": "polcy"}, "did you mean 'policy'"),
        ({"baseline": "x"}, "baseline: there is no 'x'"),
        ({"prompts": 0}, "prompts must be at least 1; found 0"),
        ({"prompts": 7}, "prompts=7 is too few: an interval needs at least 8 prompts"),
        ({"samples": 1}, "samples=1 is too few"),
        ({"lanczos": -1}, "lanczos must not be negative"),
        ({"scales": ()}, "scales and tolerance must be positive"),
        ({"scales": (0.0, 1.0)}, "scales and tolerance must be positive"),
        ({"fraction": 1.5}, "fraction must be above 0"),
    ],
)
def test_options_are_checked_before_any_weight_is_read(changes, message):
    with pytest.raises(CounterpointError, match=message):
        damage("nowhere", "nowhere", "nowhere", "math", options=dataclasses.replace(OPTIONS, **changes))


def made_damage(measured, first, second, error=0.0):
    values = {1.0: torch.tensor([measured, measured])}
    ones = torch.ones(2, dtype=torch.float64)
    return Damage(
        "a",
        "b",
        "math",
        None,
        OPTIONS,
        first=Estimate(first, first, first),
        second=Estimate(second, second, second),
        predicted=Estimate(first + second, first + second, first + second),
        measured=Estimate(measured, measured - error, measured + error),
        range=reach_of(values, first * ones, second * ones, ones),
    )


def test_the_verdict_says_whether_second_order_predicts():
    assert made_damage(1.0, 0.2, 0.7).verdict == (
        "The update damages math: +1 [+1, +1] per token. The quadratic approximation predicts +0.9 (10 % off). "
        "It is accurate up to the whole update."
    )
    wrong = made_damage(1.0, 0.2, 2.0)
    assert "predicts +2.2 (60 % off). It is not accurate even at 1 times the update." in wrong.verdict
    assert made_damage(1.0, 0.2, 0.7, error=2).verdict.startswith("Damage to math is within noise: +1 [-1, +3]")
    assert made_damage(-1.0, -1.0, 0.0).verdict.startswith("The update helps math: -1 ")
    (point,) = wrong.range.points
    point = dataclasses.replace(point, difference=Estimate(-0.6, -1.0, 0.1))
    scattered = dataclasses.replace(wrong, range=dataclasses.replace(wrong.range, points=(point,)))
    assert "(60 % off, within noise)" in scattered.verdict
    half = dataclasses.replace(wrong.range, largest_scale=0.5)
    assert dataclasses.replace(wrong, range=half).verdict.endswith("It is accurate up to half the update.")
    assert Damage("a", "b", "math", None, OPTIONS).verdict == "Nothing was measured."
