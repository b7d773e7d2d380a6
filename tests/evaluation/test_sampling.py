import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.evaluation import Sampling, generate
from counterpoint.evaluation.sampling import end_token_ids, render_prompt
from counterpoint.pocket import model_path


@pytest.fixture(scope="module")
def pocket():
    model = AutoModelForCausalLM.from_pretrained(model_path())
    return model, AutoTokenizer.from_pretrained(model_path(), padding_side="left")


PROMPTS = ["1+1=", "12+23=", 'rev("abc")=', "3+4="]


def texts(completions):
    return [c.text for c in completions]


def test_the_global_random_state_and_training_mode_are_left_alone(pocket):
    model, tokenizer = pocket
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()


def test_the_seed_decides_and_nothing_else(pocket):
    model, tokenizer = pocket
    first = generate(model, tokenizer, PROMPTS * 4, Sampling(max_new_tokens=8, seed=1))
    torch.manual_seed(99)
    again = generate(model, tokenizer, PROMPTS * 4, Sampling(max_new_tokens=8, seed=1))
    other = generate(model, tokenizer, PROMPTS * 4, Sampling(max_new_tokens=8, seed=2))
    assert texts(first) == texts(again)
    assert texts(first) != texts(other)


def test_greedy_does_not_depend_on_batch_or_padding(pocket):
    model, tokenizer = pocket
    together = generate(model, tokenizer, PROMPTS, Sampling(temperature=0, max_new_tokens=8))
    alone = [generate(model, tokenizer, [p], Sampling(temperature=0, max_new_tokens=8))[0] for p in PROMPTS]
    assert texts(together) == texts(alone)


def test_lengths_and_truncation(pocket):
    model, tokenizer = pocket
    short = generate(model, tokenizer, PROMPTS, Sampling(temperature=0, max_new_tokens=1))
    assert {c.num_tokens for c in short} == {1}
    assert all(c.truncated for c in short)
    whole = generate(model, tokenizer, PROMPTS, Sampling(temperature=0, max_new_tokens=24))
    assert not any(c.truncated for c in whole)
    assert all(c.num_tokens == len(c.text) + 1 for c in whole)  # one token a character, and the end token


def test_batches_are_counted(pocket):
    model, tokenizer = pocket
    counts = []
    generate(model, tokenizer, PROMPTS * 2, Sampling(max_new_tokens=2, batch_size=3), counts.append)
    assert counts == [3, 3, 2]


def test_all_declared_end_tokens_end_a_completion(pocket):
    model, tokenizer = pocket
    assert end_token_ids(model, tokenizer) == [tokenizer.eos_token_id]


def test_plain_prompts_are_used_as_they_are(pocket):
    assert render_prompt(pocket[1], "1+1=", {}) == "1+1="
