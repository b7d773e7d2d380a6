"""What an analysis is about: models, domains and completions from files, and what is said where they do not fit."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterpoint.config import ModelConfig
from counterpoint.diagnosis import save_rollouts
from counterpoint.diagnosis.subject import completions_for, config_of, model_of, open_subject, wanted_domains
from counterpoint.errors import ConfigError, CounterpointError, DomainError, ModelError
from counterpoint.models import load_model
from counterpoint.pocket import model_path

UP = "model.layers.2.mlp.up_proj.weight"

CONFIG = """
model: pocket
domains: {math: {source: pocket}, qa: {source: pocket}}
training: {max_completion_length: 6}
evaluation: {prompts: 4}
run: {device: cpu}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "two.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def subject(file):
    return open_subject(file, "pocket")


def test_a_subject_is_ready_for_measuring(subject):
    assert list(subject.domains) == ["math", "qa"]
    assert not subject.model.training
    assert subject.tokenizer.pad_token_id == 0


def test_some_domains_alone(file):
    config = config_of(file)
    assert wanted_domains(config, ["qa"]) == ["qa"]
    assert list(open_subject(config, domains=["qa"]).domains) == ["qa"]
    with pytest.raises(ConfigError, match=r"no domain 'mth'; did you mean 'math'\? Known: math, qa\."):
        open_subject(file, "pocket", ["mth"])


def test_a_run_directory_is_a_configuration_and_no_model(file, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert list(config_of(tmp_path).domains) == ["math", "qa"]
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is a run directory, and a model is wanted\. It has no checkpoint yet"):
        model_of(config_of(file), tmp_path)
    checkpoint = tmp_path / "checkpoints" / "step-3"
    shutil.copytree(model_path(), checkpoint)
    with pytest.raises(ModelError, match=f"Name one of its checkpoints: {checkpoint}"):
        model_of(config_of(file), tmp_path)


def test_a_folder_that_is_not_there_is_said_at_once(file):
    with pytest.raises(ModelError, match="/nowhere: there is no such folder"):
        open_subject(file, "/nowhere")


def test_a_checkpoint_without_a_tokenizer_uses_the_configuration_s(file, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_path() / name, tmp_path / name)
    assert open_subject(file, tmp_path).tokenizer("3+4=")["input_ids"]


def test_sampled_completions_are_saved_and_read_again(subject, tmp_path):
    seen, saved = [], tmp_path / "completions.jsonl"
    found = completions_for(subject, prompts=3, samples=2, save=saved, on_progress=lambda *args: seen.append(args))
    assert {name: (r.num_groups, len(r)) for name, r in found.items()} == {"math": (3, 6), "qa": (3, 6)}
    assert seen[-1] == ("sample qa", 6, 6)
    assert completions_for(subject, file=saved) == found
    assert completions_for(subject, prompts=3, samples=2) == found, "the seed is the same"
    assert completions_for(subject, prompts=3, samples=2, seed=1) != found
    longest = max(len(item.completion_ids) for rollouts in found.values() for item in rollouts.items)
    assert longest <= 6, "the length of training"


def test_too_few_completions_say_how_many_are_needed(subject, tmp_path):
    with pytest.raises(CounterpointError, match=r"prompts=1, samples=4: .* at least 2 prompts"):
        completions_for(subject, prompts=1)
    saved = tmp_path / "few.jsonl"
    completions_for(subject, prompts=3, samples=1, save=saved)
    with pytest.raises(
        CounterpointError, match=r"'math' has completions of 3 prompts, and at least 8 are needed\. Sample 5"
    ):
        completions_for(subject, file=saved, at_least=8)


def test_files_that_hold_no_completions_of_these_domains(subject, tmp_path):
    with pytest.raises(CounterpointError, match="cannot be read"):
        completions_for(subject, file=tmp_path / "none.jsonl")
    bad = tmp_path / "bad.jsonl"
    for text in ("not json\n", json.dumps({"domain": "math"}) + "\n", "[1]\n"):
        bad.write_text(text)
        with pytest.raises(
            CounterpointError, match=r"bad.jsonl, line 1: cannot be read .*completions, one JSON object a line"
        ):
            completions_for(subject, file=bad)
    found = completions_for(subject, prompts=2, samples=1)
    save_rollouts(bad, found["qa"])
    with pytest.raises(DomainError, match="no completions of the domain 'math'; it has: qa"):
        completions_for(subject, file=bad)


def test_completions_of_another_tokenizer_are_refused(subject, tmp_path):
    saved = tmp_path / "other.jsonl"
    completions_for(subject, prompts=2, samples=1, save=saved)
    lines = [json.loads(line) for line in saved.read_text().splitlines()]
    lines[0]["completion_ids"][0] = 50_000
    saved.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(CounterpointError, match="token 50000, and the model knows only 100"):
        completions_for(subject, file=saved)


def test_a_model_with_weights_that_are_no_numbers_is_refused_with_their_number(file, tmp_path):
    model = load_model(ModelConfig(path="pocket"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :5] = torch.nan
        model.model.norm.weight[3] = torch.inf
    model.save_pretrained(tmp_path / "broken")
    said = r"6 weights are NaN or infinite, in 2 .* model.layers.1.mlp.up_proj.weight \(5\)"
    with pytest.raises(ModelError, match=said):
        open_subject(file, tmp_path / "broken")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda w: w | {UP: w[UP][:100].contiguous()}, "up_proj.weight has shape .100, 192. and not .512, 192."),
        (lambda w: {name: tensor for name, tensor in w.items() if name != UP}, "up_proj.weight is missing"),
        (lambda w: {}, "is missing, .* more like these"),
        (None, "no causal language model could be read"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_not_filled_at_random(file, tmp_path, damage, said):
    folder = shutil.copytree(model_path(), tmp_path / "broken")
    weights = folder / "model.safetensors"
    if damage is None:
        weights.write_bytes(weights.read_bytes()[:100_000])
    else:
        save_file(damage(load_file(weights)), weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=said):
        open_subject(file, folder)
