"""Settings that one domain has for itself do there what they do for a whole training."""

import pytest
import torch
from trl import GRPOTrainer

from counterpoint.training import DomainGRPOConfig, DomainGRPOTrainer
from counterpoint.training.batches import DOMAIN_KEY, PROMPT_KEY, SIGNAL_KEY
from trainer_helpers import DATA, REWARDS, digits, grpo_args

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

OWN = {
    "temperature": 0.7,
    "top_p": 0.9,
    "max_completion_length": 6,
    "num_generations": 2,
    "beta": 0.04,
    "epsilon": 0.05,
    "epsilon_high": 0.1,
}


class Seen(DomainGRPOTrainer):
    """Keeps what it generates and what its losses are computed of."""

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if not hasattr(self, "batches"):
            self.batches, self.scored = [], []
        self.batches.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in output.items()})
        return output

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.domain = inputs[DOMAIN_KEY].tolist()
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, ids, mask, keep, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(model, ids, mask, keep, *args, **kwargs)
        if kwargs.get("compute_entropy"):
            self.scored.append((self.domain, ids, mask, keep, found[0].detach(), found[1].detach()))
        return found


def build(model, tokenizer, folder, data=DATA, cls=Seen, evaluated=None, **settings):
    rewards = {name: REWARDS[name] for name in data}
    return cls(str(model), rewards, grpo_args(folder, **settings), data, evaluated, processing_class=tokenizer)


def brute_force(model, ids, mask, keep, temperature):
    """Log-probabilities and entropies of the last ``keep`` tokens of one row, from whole logits in float64."""
    with torch.no_grad():
        logits = model(input_ids=ids[None], attention_mask=mask[None]).logits[0].double() / temperature
    logps = logits.log_softmax(dim=-1)[-keep - 1 : -1]
    chosen = logps.gather(1, ids[-keep:, None])[:, 0]
    return chosen, -(logps.exp() * logps).sum(dim=-1)


def test_one_domain_with_own_settings_is_a_training_with_these(tiny_model, tiny_tokenizer, tmp_path):
    def trained(**settings):
        settings |= {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.01, "gradient_accumulation_steps": 2}
        trainer = build(tiny_model, tiny_tokenizer, tmp_path, {"math": DATA["math"]}, **settings)
        trainer.train()
        return trainer

    plain, own = trained(**OWN), trained(beta=0.5, per_domain={"math": OWN})
    assert len(plain.batches) == len(own.batches) == 2
    for mine, theirs in zip(own.batches, plain.batches, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert torch.equal(mine[key], theirs[key]), key
    theirs = dict(plain.model.named_parameters())
    assert all(torch.equal(param, theirs[name]) for name, param in own.model.named_parameters())
    clocks = ("step_time", "runtime", "per_second")
    logs = [
        [{k: v for k, v in line.items() if not k.endswith(clocks)} for line in trainer.state.log_history]
        for trainer in (own, plain)
    ]
    assert logs[0] == logs[1]
    assert any(line.get("clip_ratio/region_mean") for line in logs[0])  # the clip range did something


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_every_row_is_scored_at_its_own_temperature(peft, tiny_model, tiny_tokenizer, tmp_path):
    from peft import LoraConfig

    temperatures = {"math": 0.5, "code": 1.5}
    per_domain = {name: {"temperature": value} for name, value in temperatures.items()}
    args = grpo_args(tmp_path, beta=0.1, steps_per_generation=8, max_steps=1, per_domain=per_domain)
    adapters = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if peft else None
    held_out = {name: rows[:1] for name, rows in DATA.items()}
    data = {"eval_dataset": held_out, "processing_class": tiny_tokenizer, "peft_config": adapters}
    trainer = Seen(str(tiny_model), REWARDS, args, DATA, **data)
    model, names = trainer.model, list(DATA)

    trainer.evaluate()
    evaluated, trainer.scored = trainer.scored, []
    trainer.args.learning_rate = 0.0
    trainer.train()
    assert {domains[0] for domains, *_ in trainer.scored} == {0, 1}
    assert any(len(set(domains)) == 2 for domains, *_ in evaluated)  # rows of two domains at once
    model.eval()
    for domains, ids, mask, keep, logps, entropies in [*evaluated, *trainer.scored]:
        for i, domain in enumerate(domains):
            wanted = brute_force(model, ids[i], mask[i], keep, temperatures[names[domain]])
            real = mask[i, -keep:].bool()
            assert torch.allclose(logps[i][real].double(), wanted[0][real], atol=1e-4)
            assert torch.allclose(entropies[i][real].double(), wanted[1][real], atol=1e-4)
    batch = trainer.batches[-1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    keep = batch["completion_ids"].shape[1]
    for i, domain in enumerate(batch[DOMAIN_KEY].tolist()):
        wanted, _ = brute_force(model, ids[i], mask[i], keep, temperatures[names[domain]])
        real = batch["completion_mask"][i].bool()
        for key in ("old_per_token_logps", "ref_per_token_logps"):
            assert torch.allclose(batch[key][i][real].double(), wanted[real], atol=1e-4), key


def test_domains_are_sampled_by_their_own_settings(tiny_model, tiny_tokenizer, tmp_path):
    per_domain = {"math": {"temperature": 1e-4, "max_completion_length": 3}, "code": {"temperature": 5.0}}
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, per_domain=per_domain, max_steps=1)
    trainer.train()
    (batch,) = trainer.batches
    lengths = batch["completion_mask"].sum(dim=1)
    for prompt in batch[PROMPT_KEY].unique():
        own = batch[PROMPT_KEY] == prompt
        certain = batch[DOMAIN_KEY][own][0] == 0
        alike = len({tuple(ids) for ids in batch["completion_ids"][own].tolist()})
        assert alike == 1 if certain else alike > 1
        assert lengths[own].max() <= (3 if certain else 8)
    assert lengths[batch[DOMAIN_KEY] == 1].max() > 3


def test_groups_have_their_domains_size(tiny_model, tiny_tokenizer, tmp_path):
    sizes = {"math": 2, "code": 6}
    per_domain = {name: {"num_generations": size} for name, size in sizes.items()}
    settings = {"gradient_accumulation_steps": 6, "max_steps": 1, "strategy": "mixed"}
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, per_domain=per_domain, **settings)
    trainer.train()
    (batch,) = trainer.batches
    rewards, prompts = trainer._rewards_BF.nansum(dim=1), batch["prompt_ids"]
    assert batch[DOMAIN_KEY].bincount().tolist() == [12, 12]  # shares are of completions
    spread = []
    for prompt in batch[PROMPT_KEY].unique():
        own = batch[PROMPT_KEY] == prompt
        domain = batch[DOMAIN_KEY][own]
        assert own.sum() == sizes[list(sizes)[domain[0]]]
        assert (domain == domain[0]).all()
        assert (prompts[own] == prompts[own][0]).all()
        group = rewards[own]
        expected = (group - group.mean()) / (group.std() + 1e-4)
        assert torch.allclose(batch["advantages"][own], expected, atol=1e-5)
        assert (batch[SIGNAL_KEY][own] == (group.std() > 1e-6)).all()
        spread += [group.std() > 1e-6] * len(group)
    log = trainer.state.log_history[0]
    assert log["frac_reward_zero_std"] == pytest.approx(1 - sum(spread) / len(spread))
    shown = torch.tensor(list(trainer._logs["advantages"]))
    assert torch.allclose(shown, batch["advantages"])


def test_kl_is_logged_of_domains_that_have_it(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, beta=0.1, max_steps=2, per_domain={"code": {"beta": 0.0}})
    trainer.train()
    log = trainer.state.log_history[1]
    assert log["kl/math"] > 0
    assert "kl/code" not in log
    assert (trainer.beta, trainer.epsilon_low) == (0.1, 0.2)


def test_a_stop_string_ends_a_completion(tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    texts = {"math": "1;2;3;", "code": "a;b;c;"}
    seen = []

    def sample(self, prompt_ids, *args, **kwargs):
        domains = [name for name, _ in self._places]
        return [tiny_tokenizer(texts[name], add_special_tokens=False)["input_ids"] for name in domains], None

    def see(completions, **columns):
        seen.extend(completions)
        return [float(i % 2) for i in range(len(completions))]

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", sample)
    args = grpo_args(tmp_path, max_steps=1, per_domain={"math": {"stop": [";3", "2"]}, "code": {"stop": ["x"]}})
    trainer = Seen(str(tiny_model), {"math": see, "code": see}, args, DATA, processing_class=tiny_tokenizer)
    trainer.train()
    assert set(seen) == {"1;2", "a;b;c;"}
    log = trainer.state.log_history[0]
    assert (log["truncated/math"], log["truncated/code"]) == (0.0, 1.0)
    assert log["completions/clipped_ratio"] == 0.5
    assert log["completions/mean_terminated_length"] == log["completion_length/math"] == 3


@pytest.mark.parametrize("num_logprobs", [None, 1])
def test_log_probabilities_of_the_engine_are_cut_too(num_logprobs, tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    ids = [tiny_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("1;2", "a;b")]
    scores = num_logprobs and [[-1.0] * len(own) for own in ids]
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", lambda self, *args: (ids, scores))
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, per_domain={"math": {"stop": [";"]}})
    with trainer._working_on(["math", "code"]):
        cut, kept = trainer._generate_single_turn([[5], [6]], None, {}, 4)
    assert list(map(len, cut)) == [2, 3]
    assert kept is None if num_logprobs is None else list(map(len, kept)) == [2, 3]


def test_an_engine_is_given_the_settings_of_each_domain(tiny_model, tiny_tokenizer, tmp_path):
    """What vLLM beside training is asked, and that its own settings are back afterwards."""
    asked = []

    class Engine:
        temperature, top_p, max_completion_length = 1.0, 1.0, 8

        def __init__(self):
            vars(self).update(temperature=1.0, top_p=1.0, max_completion_length=8)

        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler):
            asked.append((prompts, self.temperature, self.top_p, self.max_completion_length))
            ids = [[prompt[0]] * self.max_completion_length for prompt in prompts]
            return prompts, ids, [[[-0.5]] * len(own) for own in ids], None

    own = {"math": {"temperature": 0.5, "max_completion_length": 3}, "code": {"top_p": 0.9}}
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, per_domain=own)
    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), 0
    with trainer._working_on(["code", "math", "code"]):
        ids, logprobs = trainer._generate_single_turn([[7], [8], [9]], None, {}, 4)
    assert asked == [([[8]], 0.5, 1.0, 3), ([[7], [9]], 1.0, 0.9, 8)]
    assert ids == [[7] * 8, [8] * 3, [9] * 8]
    assert list(map(len, logprobs)) == [8, 3, 8]
    assert vars(trainer.vllm_generation) == {"temperature": 1.0, "top_p": 1.0, "max_completion_length": 8}


def test_without_own_settings_nothing_is_put_in_between(tiny_model, tiny_tokenizer, tmp_path):
    plain = GRPOTrainer(
        str(tiny_model), digits, grpo_args(tmp_path), _rows(DATA["math"]), processing_class=tiny_tokenizer
    )
    ours = build(tiny_model, tiny_tokenizer, tmp_path, per_domain={"math": {}, "code": {"temperature": None}})
    assert ours.model.forward.__func__.__code__ is plain.model.forward.__func__.__code__
    assert not ours._settings.any


def _rows(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def test_own_settings_are_parsed_and_saved_as_plain_data(tmp_path):
    from trl import TrlParser

    parsed = TrlParser(DomainGRPOConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--bf16", "false", "--per_domain", '{"math": {"stop": ["END"], "beta": 0}}']
    )[0]
    assert parsed.per_domain == {"math": {"stop": ["END"], "beta": 0.0}}
    assert parsed.to_dict()["per_domain"] == parsed.per_domain
