"""The whole measurement on a small model: its numbers agree with each other, errors come early, memory may run out."""

import dataclasses
import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

import counterpoint.diagnosis.damage_analysis.stages as stages
from counterpoint.diagnosis import Damage, DamageOptions, Estimate, damage, save_rollouts, to_json
from counterpoint.diagnosis.damage_analysis.edit import edit_between, open_at
from counterpoint.diagnosis.damage_analysis.loss import logit_curvature, text_loss
from counterpoint.diagnosis.damage_analysis.range import range_of
from counterpoint.diagnosis.damage_analysis.verdict import verdict_of
from counterpoint.diagnosis.subject import config_of
from counterpoint.errors import ConfigError, CounterpointError, ModelError
from damage_helpers import made_up, make_checkpoints, make_completions, make_config

OPTIONS = DamageOptions(lanczos=3, top=2, draws=2, scales=(0.5, 1.0), fraction=0.5)


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
    return damage(place["base"], place["after"], "math", place["config"], **given)


@pytest.fixture(scope="module")
def found(place):
    return measure(place, measure_reward=True)


def test_all_parts_agree_with_each_other(found):
    assert found.stopped is None
    assert found.predicted.value == pytest.approx(found.first.value + found.second.value, rel=1e-12)
    assert found.difference.value == pytest.approx(found.measured.value - found.predicted.value, rel=1e-9)
    assert sum(row.first.value for row in found.modules) == pytest.approx(found.first.value, rel=1e-9)
    assert sum(row.second.value for row in found.modules) == pytest.approx(found.second.value, rel=1e-9)
    assert sum(map(sum, found.span.forms)) == pytest.approx(found.second.value, rel=1e-3)
    route = found.route
    together = route.second_on.value + route.cross.value + route.second_off.value
    assert together == pytest.approx(found.second.value, rel=1e-9)
    assert 0 < route.neurons < route.all_neurons == 24
    assert [point.scale for point in found.range.points] == [0.5, 1.0]
    assert found.range.points[1].measured == found.measured
    assert found.reward.prompts == 8
    unchanged = {row.module: row.edit_share for row in found.modules}
    assert unchanged["layers.0.attention"] == 0
    assert found.span.modules == ("embedding", "layers.0.mlp", "layers.1.mlp")


def test_gauss_newton_and_fisher_are_halves_of_the_quadratic_forms(place, found):
    subject = open_at(config_of(place["config"]), place["base"], ["math"])
    edit = edit_between(place["base"], place["after"], subject.model)
    text = text_loss(subject.model, made_up("math"))
    forms = logit_curvature(text, edit)
    tokens = 10 * 4 * 4
    assert found.tokens == tokens
    assert found.fisher.value == pytest.approx(0.5 * float(forms.fisher_P.sum()) / tokens, rel=1e-4)
    assert found.gauss_newton.value == pytest.approx(0.5 * float(forms.gauss_newton_P.sum()) / tokens, rel=1e-3)


def test_the_prediction_fails_no_worse_than_third_order(found):
    half, full = (abs(point.difference.value) for point in found.range.points)
    assert half < full / 4, "a third order falls to an eighth at half the edit, a fourth order to a sixteenth"
    full_point = found.range.points[1]
    assert full_point.relative_error == pytest.approx(abs(found.difference.value / found.measured.value))


def test_the_result_is_json(found):
    text = json.dumps(to_json("damage", found))
    read = json.loads(text)
    assert read["schema"] == "counterpoint.diagnosis.damage"
    assert read["options"]["surrogate"] == "policy"
    assert set(read["measured"]) == {"value", "low", "high"}


def test_the_edit_leads_from_one_checkpoint_to_the_other(place):
    subject = open_at(config_of(place["config"]), place["base"], ["math"])
    edit = edit_between(place["base"], place["after"], subject.model)
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
    forth = edit_between(place["base"], tmp_path / "adapters", open_at(config, place["base"], ["math"]).model)
    merged = open_at(config, tmp_path / "adapters", ["math"]).model
    back = edit_between(tmp_path / "adapters", place["base"], merged)
    assert len(forth) == 4
    assert set(forth) == set(back) < set(dict(merged.named_parameters()))
    before = LlamaForCausalLM.from_pretrained(place["base"]).state_dict()
    for name, change in forth.items():
        torch.testing.assert_close(change, -back[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(merged.state_dict()[name], before[name] + change, rtol=0, atol=1e-6)
    assert all(param.requires_grad for param in merged.parameters())


def test_progress_is_told_and_nothing_runs_that_was_not_asked_for(place):
    told = []
    options = dataclasses.replace(OPTIONS, blocks=False, lanczos=0)
    found = measure(place, other=None, options=options, on_progress=lambda *step: told.append(step))
    assert (found.span, found.spectrum, found.route, found.reward) == (None, None, None, None)
    assert {"measured", "Hessian products", "Gauss-Newton and Fisher"} <= {what for what, _, _ in told}
    assert all(0 < done <= total for _, done, total in told)


def test_what_was_measured_before_memory_ran_out_is_kept(place, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(stages, "block_forms", fails)
    found = measure(place)
    assert found.stopped == (
        "Memory did not suffice for Hessian-vector products of single modules. Lower --batch-size (now 8 completions "
        "at once). What was measured before is kept."
    )
    assert found.second is not None
    assert found.route is not None
    assert found.span is None
    assert found.spectrum is None
    monkeypatch.setattr(stages, "along", fails)
    found = measure(place, options=dataclasses.replace(OPTIONS, batch_size=1))
    assert "one completion already: shorten completions" in found.stopped
    assert found.measured is not None
    assert found.second is None
    assert found.verdict


def test_memory_that_ends_in_the_spectrum_names_its_option(place, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(stages, "spectrum_of", fails)
    assert "Lower --lanczos (now 3)" in measure(place, other=None).stopped
    monkeypatch.setattr(stages, "text_loss", fails)
    with pytest.raises(CounterpointError, match=r"one batch of completions\. Lower --batch-size"):
        measure(place, other=None)


def test_other_errors_of_the_runtime_are_not_hidden(place, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(stages, "block_forms", fails)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        measure(place)


def test_equal_checkpoints_are_said_to_be_equal(place):
    with pytest.raises(ModelError, match="hold the same weights, so nothing can have been damaged"):
        damage(place["base"], place["base"], "math", place["config"], completions=place["completions"])


def test_checkpoints_of_other_shapes_are_refused_before_anything_runs(place):
    with pytest.raises(ModelError, match=r"different (shapes|architectures)"):
        damage(place["base"], "pocket", "math", place["config"], completions=place["completions"])


def test_weights_that_are_no_numbers_are_counted_and_named(place, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(place["after"], tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.norm\.weight: of 16 weights 0 are NaN or infinite in .* and 3 in"):
        damage(place["base"], broken, "math", place["config"], completions=place["completions"])


def test_an_unknown_domain_is_named_with_the_nearest(place):
    with pytest.raises(ConfigError, match="no domain 'meth'; did you mean 'math'"):
        damage(place["base"], place["after"], "meth", place["config"])
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
        ({"baseline": "x"}, "There is no baseline 'x'"),
        ({"prompts": 0}, "--prompts must be at least 1; found 0"),
        ({"prompts": 7}, "--prompts must be at least 8, so many are needed for an interval; found 7"),
        ({"samples": 1}, "--samples must be at least 2"),
        ({"lanczos": -1}, "--lanczos must not be negative"),
        ({"scales": ()}, "Scales and tolerance must be positive"),
        ({"scales": (0.0, 1.0)}, "Scales and tolerance must be positive"),
        ({"fraction": 1.5}, "--fraction must be above 0"),
    ],
)
def test_options_are_checked_before_any_weight_is_read(changes, message):
    with pytest.raises(CounterpointError, match=message):
        damage("nowhere", "nowhere", "math", "nowhere", options=dataclasses.replace(OPTIONS, **changes))


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
        range=range_of(values, first * ones, second * ones, ones),
    )


def test_the_verdict_says_whether_second_order_predicts():
    said = verdict_of(made_damage(1.0, 0.2, 0.7))
    assert "damages math: +1 per token" in said
    assert "predict it here: +0.9 predicted, an error of 10 % of the measured damage." in said
    assert "hold up to 1 times the edit (the largest measured)" in said
    said = verdict_of(made_damage(1.0, 0.2, 2.0))
    assert (
        "do not predict it here: +2.2 predicted, an error of 120 % of the measured damage and 60 % of the largest term"
        in said
    )
    assert "fail already at 1 times the edit" in said
    assert "within noise" in verdict_of(made_damage(1.0, 0.2, 0.7, error=2))
    assert "does not damage math but helps it" in verdict_of(made_damage(-1.0, -1.0, 0.0))
    scattered = made_damage(1.0, 0.2, 2.0)
    assert "The gap is within noise" not in verdict_of(scattered)
    point = dataclasses.replace(scattered.range.points[0], within_noise=True)
    scattered = dataclasses.replace(scattered, range=dataclasses.replace(scattered.range, points=(point,)))
    assert "allowed. The gap is within noise: other prompts could close it." in verdict_of(scattered)
    assert verdict_of(Damage("a", "b", "math", None, OPTIONS)) == "Nothing was measured."
