import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from counterpoint.pocket import TASKS, model_path
from pocket_measure import complete, load, measure

BAND = (0.15, 0.6)
LEAD = 0.15
"""How much better greedy answers must be than sampled ones to count as clearly better."""


@pytest.fixture(scope="module")
def base():
    return load(model_path())


def test_the_shipped_folder_loads_by_the_library_alone():
    model = AutoModelForCausalLM.from_pretrained(model_path(), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(model_path(), local_files_only=True)
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.float32
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_sizes(base):
    assert 1e6 <= base[0].num_parameters() <= 3e6
    assert sum(file.stat().st_size for file in model_path().iterdir()) <= 8e6


def test_loading_gives_the_stored_weights_exactly(base):
    stored = load_file(model_path() / "model.safetensors")
    params = dict(base[0].named_parameters())
    assert set(stored) == set(params)
    assert all(torch.equal(params[name].half(), weight) for name, weight in stored.items())
    assert all(torch.equal(params[name], weight.float()) for name, weight in stored.items())


def test_left_padding_does_not_change_the_answers(base):
    prompts = [task.generate("test", index)["prompt"] for task in TASKS.values() for index in range(4)]
    together = complete(*base, prompts, greedy=True)
    assert together == [complete(*base, [prompt], greedy=True)[0] for prompt in prompts]


def test_sampling_repeats_by_seed_and_leaves_the_global_random_state(base):
    prompts = [TASKS["writing"].generate("test", index)["prompt"] for index in range(8)]
    before = torch.get_rng_state()
    first, again = (complete(*base, prompts, greedy=False, seed=3) for _ in range(2))
    assert first == again != complete(*base, prompts, greedy=False, seed=4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", list(TASKS))
def test_the_base_knows_each_domain_and_samples_it_badly(base, name):
    prompts = 128
    score = measure(*base, TASKS[name], prompts=prompts)
    error = 3 * 0.5 / prompts**0.5
    assert BAND[0] - error / 2 < score.sampled < BAND[1] + error / 2
    assert score.greedy > score.sampled + LEAD


def test_the_record_says_what_these_weights_reach():
    record = json.loads((model_path() / "build.json").read_text())
    for name, score in record["scores"]["noise"].items():
        assert BAND[0] <= score["sampled"] <= BAND[1], name
        assert score["greedy"] > score["sampled"] + LEAD, name


def test_the_base_names_its_architecture_so_that_trl_loads_its_path():
    assert json.loads((model_path() / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
