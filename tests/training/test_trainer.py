"""What the trainer does beyond TRL: shares, metrics per domain, refusals, other ways to give data."""

import math

import pytest
import torch
from datasets import Dataset

from counterpoint.errors import DivergedError, DomainError, RewardError, UnsupportedError
from counterpoint.surgery import cosines
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.batches import DOMAIN_KEY
from trainer_helpers import DATA, REWARDS, digits, grpo_args, letters

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def build(model, tokenizer, folder, data=DATA, rewards=REWARDS, cls=DomainGRPOTrainer, **kwargs):
    eval_dataset = kwargs.pop("eval_dataset", None)
    return cls(str(model), rewards, grpo_args(folder, **kwargs), data, eval_dataset, processing_class=tokenizer)


class Watching(DomainGRPOTrainer):
    """Notes the domain of every micro-batch that is trained on."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        slot = self._step % self.args.steps_per_generation
        loss = super().training_step(model, inputs, num_items_in_batch)
        part = self._buffered_inputs[slot]
        assert (part[DOMAIN_KEY] == part[DOMAIN_KEY][0]).all()
        self.seen.append(self.domains[int(part[DOMAIN_KEY][0])])
        return loss


def watch(*args, **kwargs):
    trainer = build(*args, cls=Watching, **kwargs)
    trainer.seen = []
    trainer.train()
    return [sorted(trainer.seen[i : i + 4]) for i in range(0, len(trainer.seen), 4)]


def test_every_step_holds_the_shares_exactly(tiny_model, tiny_tokenizer, tmp_path):
    steps = watch(tiny_model, tiny_tokenizer, tmp_path, shares={"math": 3, "code": 1})
    assert steps == [["code", "math", "math", "math"]] * 3


def test_every_step_holds_the_shares_when_one_generation_covers_two_steps(tiny_model, tiny_tokenizer, tmp_path):
    steps = watch(tiny_model, tiny_tokenizer, tmp_path, steps_per_generation=8, max_steps=4)
    assert steps == [["code", "code", "math", "math"]] * 4


def test_shares_that_the_batch_cannot_hold_are_refused_with_a_batch_that_can(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(DomainError, match=r"gradient_accumulation_steps=3 or 6 would do"):
        build(tiny_model, tiny_tokenizer, tmp_path, shares={"math": 2, "code": 1})


def test_carry_meets_such_shares_over_steps(tiny_model, tiny_tokenizer, tmp_path):
    steps = watch(tiny_model, tiny_tokenizer, tmp_path, shares={"math": 2, "code": 1}, share_rule="carry")
    assert sum(step.count("math") for step in steps) == 8


def test_carry_gives_every_step_of_a_long_generation_its_own_numbers(tiny_model, tiny_tokenizer, tmp_path):
    shares = {"shares": {"math": 2, "code": 1}, "share_rule": "carry", "max_steps": 6}
    short = watch(tiny_model, tiny_tokenizer, tmp_path / "a", **shares)
    long = watch(tiny_model, tiny_tokenizer, tmp_path / "b", steps_per_generation=8, **shares)
    assert long == short
    assert len({step.count("math") for step in short}) > 1


def test_a_domain_missing_from_a_step_takes_no_part(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(
        tiny_model, tiny_tokenizer, tmp_path, shares={"math": 9, "code": 1}, share_rule="carry", max_steps=1
    )
    trainer.train()
    assert trainer.last_record.domains == ("math",)
    assert (trainer.last_record.weights_GD == 1).all()


def test_metrics_exist_for_every_domain(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, beta=0.05, max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    per_domain = ["reward", "reward_std", "zero_advantage", "entropy", "kl", "clip_ratio", "completion_length"]
    for key in [*per_domain, "truncated", "grad_norm"]:
        for domain in DATA:
            assert math.isfinite(line[f"{key}/{domain}"]), (key, domain)
    assert line["reward"] == pytest.approx((line["reward/math"] + line["reward/code"]) / 2)
    assert line["entropy"] == pytest.approx((line["entropy/math"] + line["entropy/code"]) / 2, rel=1e-5)
    _, gram_GDD = trainer.last_record.regroup("global")
    assert line["cosine/code|math"] == pytest.approx(cosines(gram_GDD)[0, 0, 1].item())
    assert 0 <= line["conflict_rate"] <= 1
    assert line["removed"] >= 0


def test_the_number_of_metrics_does_not_grow_with_the_model(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, strategy="mgs-tensor", max_steps=1)
    trainer.train()
    assert not [key for key in trainer.state.log_history[0] if "layers" in key]


def test_several_rewards_of_a_domain_are_logged_apart(tiny_model, tiny_tokenizer, tmp_path):
    def constant(completions, **_):
        return [0.25] * len(completions)

    rewards = {"math": [digits, constant], "code": REWARDS["code"]}
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, rewards=rewards, reward_weights=[1.0, 2.0, 1.0], max_steps=1)
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["reward/math/constant"] == 0.25
    assert line["reward/math"] == pytest.approx(line["reward/math/digits"] + 0.5)
    assert "reward/code/letters" not in line


def test_a_dataset_with_a_domain_column_trains_like_a_mapping(tiny_model, tiny_tokenizer, tmp_path):
    rows = [{**row, "domain": name} for name, domain_rows in DATA.items() for row in domain_rows]
    mapping = build(tiny_model, tiny_tokenizer, tmp_path / "a")
    mapping.train()
    column = build(tiny_model, tiny_tokenizer, tmp_path / "b", data=Dataset.from_list(rows))
    column.train()
    assert [line.get("loss") for line in mapping.state.log_history] == [
        line.get("loss") for line in column.state.log_history
    ]


def test_trls_own_evaluation_tells_domains_apart(tiny_model, tiny_tokenizer, tmp_path):
    held_out = {"code": [{"prompt": f'dup("{c}")=', "answer": c + c} for c in "xyz"]}
    settings = {"max_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 2}
    rewards, seen = (
        {
            "math": digits,
            "code": lambda completions, **_: seen.extend(letters(completions)) or seen[-len(completions) :],
        },
        [],
    )
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, rewards=rewards, eval_dataset=held_out, **settings)
    trainer.train()
    seen.clear()
    metrics = trainer.evaluate()
    assert len(seen) == 6  # batches of 4 and 2: a mean over batches would count the last two rows twice
    assert metrics["eval_reward/code"] == pytest.approx(sum(seen) / 6)
    assert metrics["eval_reward"] != pytest.approx(metrics["eval_reward/code"])
    assert "eval_reward/math" not in metrics
    assert trainer.held_out == {"code": metrics["eval_reward/code"]}


def test_evaluating_an_unknown_domain_is_refused(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(
        DomainError, match=r"eval_dataset: 'maths' is no domain of train_dataset; did you mean 'math'\?"
    ):
        build(tiny_model, tiny_tokenizer, tmp_path, eval_dataset={"maths": [{"prompt": "1+1="}]})


def test_batch_scaling_means_the_domains_batch(tiny_model, tiny_tokenizer, tmp_path):
    def wide(completions, **_):
        return [1000.0 * sum(ch.islower() for ch in c) for c in completions]

    spread = {}

    class Spread(DomainGRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            for i, name in enumerate(self.domains):
                spread[name] = output["advantages"][output[DOMAIN_KEY] == i].std().item()
            return output

    rewards = {"math": digits, "code": wide}
    trainer = build(
        tiny_model, tiny_tokenizer, tmp_path, rewards=rewards, cls=Spread, scale_rewards="batch", max_steps=1
    )
    trainer.train()
    assert spread["math"] == pytest.approx(spread["code"], rel=0.5)


def test_grams_every_leaves_plain_mixing_alone_in_between(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(tiny_model, tiny_tokenizer, tmp_path, strategy="mixed", grams_every=2, max_steps=4)
    trainer.train()
    recorded = ["conflict_rate" in line for line in trainer.state.log_history[:4]]
    assert recorded == [True, False, True, False]


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched(tiny_model, tiny_tokenizer, tmp_path):
    class Broken(DomainGRPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            return loss * torch.nan if self.state.global_step == 1 else loss

    trainer = build(tiny_model, tiny_tokenizer, tmp_path, cls=Broken)
    with pytest.raises(DivergedError, match="Step 2: the loss is nan"):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert trainer.surgeon.collected == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"loss_type": "bnpo"}, "loss_type='bnpo' divides by the tokens of each micro-batch"),
        ({"top_entropy_quantile": 0.5}, "top_entropy_quantile=0.5 takes its threshold from each micro-batch"),
        ({"accelerator_config": {"split_batches": True}}, "accelerator_config.split_batches=True"),
    ],
)
def test_settings_that_cannot_be_exact_are_refused_by_name(overrides, message, tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(UnsupportedError, match=message):
        build(tiny_model, tiny_tokenizer, tmp_path, **overrides)


def test_an_entropy_bonus_is_approximate_and_says_so(tiny_model, tiny_tokenizer, tmp_path):
    with pytest.warns(UserWarning, match="entropy_coef averages over each micro-batch"):
        build(tiny_model, tiny_tokenizer, tmp_path, entropy_coef=0.01)


def test_a_reward_that_raises_stops_training_with_the_row(tiny_model, tiny_tokenizer, tmp_path):
    def broken(prompts, answer, **_):
        raise KeyError(answer[0])

    trainer = build(tiny_model, tiny_tokenizer, tmp_path, rewards={"math": broken, "code": REWARDS["code"]})
    with pytest.raises(RewardError, match=r"domain 'math': reward 'broken' raised KeyError: '\d+', for row \d"):
        trainer.train()


def test_surgery_learns_both_domains(tiny_model, tiny_tokenizer, tmp_path):
    trainer = build(
        tiny_model, tiny_tokenizer, tmp_path, max_steps=25, learning_rate=2e-2, per_device_train_batch_size=16
    )
    trainer.train()
    lines = trainer.state.log_history
    for domain in DATA:
        early = sum(line[f"reward/{domain}"] for line in lines[:3]) / 3
        late = sum(line[f"reward/{domain}"] for line in lines[22:25]) / 3
        assert late > early + 0.2, (domain, early, late)
