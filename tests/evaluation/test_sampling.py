import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.evaluation import Sampling, generate
from counterpoint.evaluation.sampling import end_token_ids, render_prompt, rollout_engine
from counterpoint.launch import Launch
from counterpoint.pocket import model_path
from counterpoint.training import DomainGRPOTrainer
from trainer_helpers import digits, grpo_args


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


class FakeVLLM:
    """Has what TRL's ``VLLMGeneration`` has; generates with the model whose weights were sent last."""

    def __init__(self, trainer):
        self.trainer, self.seen, self.weights = trainer, [], None
        self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty = 0.7, 0.9, 5, 0.1, 1.3
        self.max_completion_length = 3

    def sync_weights(self):
        self.weights = copy.deepcopy(self.trainer.model)

    def generate(self, prompts, images, num_generations, profiler):
        assert (images, num_generations) == (None, 1)
        self.seen.append({key: vars(self)[key] for key in SETTINGS} | {"prompts": len(prompts)})
        completions = []
        for ids in prompts:
            most = self.max_completion_length
            whole = self.weights.generate(torch.tensor([ids]), max_new_tokens=most, do_sample=False)
            completions.append(whole[0, len(ids) :].tolist())
        return prompts, completions, [[[0.0]] * len(ids) for ids in completions], None


SETTINGS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_run_with_vllm_is_evaluated_by_vllm(pocket, tmp_path):
    model, tokenizer = copy.deepcopy(pocket[0]), pocket[1]
    args = grpo_args(tmp_path, max_steps=1)
    trainer = DomainGRPOTrainer(
        model, digits, args, {"a": [{"prompt": p} for p in PROMPTS]}, processing_class=tokenizer
    )
    assert rollout_engine(trainer) is None
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, FakeVLLM(trainer), -1
    own = {key: vars(trainer.vllm_generation)[key] for key in SETTINGS}
    how = Sampling(temperature=0, max_new_tokens=8, batch_size=3)
    found = generate(model, tokenizer, PROMPTS, how, engine=rollout_engine(trainer))
    assert found == generate(model, tokenizer, PROMPTS, how)
    asked = {"temperature": 0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    assert trainer.vllm_generation.seen == [asked | {"max_completion_length": 8, "prompts": n} for n in (3, 1)]
    assert {key: vars(trainer.vllm_generation)[key] for key in SETTINGS} == own
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    trainer.state.global_step = 1  # a step of training: the engine gets the new weights
    after = generate(model, tokenizer, PROMPTS, how, engine=rollout_engine(trainer))
    assert after != found
    assert after == generate(model, tokenizer, PROMPTS, how)


class SecondOfTwo(Launch):
    """The rank that gets the shorter batch of a round; what the first one made is empty."""

    def gather(self, value):
        self.own.update(value)
        return [dict.fromkeys(range(len(PROMPTS))), value]


def test_every_rank_asks_an_engine_for_as_many(pocket, tmp_path):
    model, tokenizer = pocket
    asked, launch = [], SecondOfTwo(1, 2)
    object.__setattr__(launch, "own", {})

    def engine(prompt_ids, sampling):
        asked.append(len(prompt_ids))
        return [[tokenizer.eos_token_id]] * len(prompt_ids)

    generate(model, tokenizer, PROMPTS, Sampling(batch_size=3), launch=launch, engine=engine)
    assert asked == [3]  # as on the first rank: a vLLM server cuts what it made into equal parts
    assert len(launch.own) == 1
