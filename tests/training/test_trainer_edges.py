"""Where the trainer meets TRL's and the user's edges: other datasets, columns of any name, back ends, checkpoints."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from peft import PromptTuningConfig
from torch import nn
from transformers import AutoModelForCausalLM

from counterpoint.errors import DivergedError, DomainError, GroupingError, UnsupportedError
from counterpoint.surgery import Strategy, Surgeon
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.metrics import surgery_metrics, unscaled
from trainer_helpers import DATA, REWARDS, GradientTape, digits, grpo_args, letters, shortness

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def build(tiny_model, tiny_tokenizer, tmp_path):
    def make(
        data=DATA,
        rewards=REWARDS,
        held_out=None,
        *,
        model=str(tiny_model),
        cls=DomainGRPOTrainer,
        more=None,
        **settings,
    ):
        args = grpo_args(tmp_path, **{"max_steps": 1, "per_device_eval_batch_size": 4} | settings)
        return cls(model, rewards, args, data, held_out, tiny_tokenizer, **more or {})

    return make


class Seen:
    """A reward that keeps the columns it was given."""

    __name__ = "seen"

    def __init__(self):
        self.columns = []

    def __call__(self, completions, **columns):
        self.columns.append(columns)
        return shortness(completions)

    def all(self, key):
        return [value for columns in self.columns for value in columns[key]]


# Rows and columns


def test_columns_of_ones_own_reach_the_reward_whatever_their_names(build):
    math_seen, code_seen = Seen(), Seen()
    data = {
        "math": [{"prompt": f"{i}=", "row": f"table row {i}", "domain": "algebra", "counts": i} for i in range(4)],
        "code": DATA["code"],
    }
    build(data, {"math": math_seen, "code": code_seen}).train()
    assert {*math_seen.all("domain")} == {"algebra"}
    assert all(
        row == f"table row {count}" for row, count in zip(math_seen.all("row"), math_seen.all("counts"), strict=True)
    )
    assert {*code_seen.all("domain")} == {"code"}
    assert not [key for columns in code_seen.columns for key in columns if key.startswith("counterpoint")]


def test_unused_columns_are_removed_as_in_trl(build):
    seen = Seen()
    build(DATA, {"math": seen, "code": letters}, remove_unused_columns=True).train()
    assert all("answer" not in columns for columns in seen.columns)


def test_content_may_be_text_in_one_domain_and_parts_in_another(build, tiny_tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}{{ m['content'] if m['content'] is string else m['content'][0]['text'] }}{% endfor %}"
    )
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    data = {
        "math": [{"prompt": [{"role": "user", "content": "1+1="}]}],
        "code": [{"prompt": [{"role": "user", "content": [{"type": "text", "text": "up"}]}]}],
    }
    rewards = {name: lambda completions, **_: shortness([c[0]["content"] for c in completions]) for name in data}
    trainer = build(data, rewards)
    trainer.train()
    assert trainer.state.global_step == 1


def test_without_shuffling_rows_keep_their_order_inside_each_domain(build):
    seen = {name: Seen() for name in DATA}
    build(DATA, seen, shuffle_dataset=False, max_steps=4).train()
    assert seen["math"].all("prompts")[::4] == [DATA["math"][i % 7]["prompt"] for i in range(8)]
    assert seen["code"].all("prompts")[::4] == [DATA["code"][i % 5]["prompt"] for i in range(8)]


def test_an_epoch_is_the_rows_seen_also_where_max_steps_ends_training(build):
    trainer = build(max_steps=5)
    trainer.train()
    epochs = [line["epoch"] for line in trainer.state.log_history if "loss" in line]
    assert epochs == pytest.approx([i * 4 / 12 for i in range(1, 6)], abs=1e-3)  # four prompts of twelve in each step


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DatasetDict(train=Dataset.from_list(DATA["math"])), r"a DatasetDict holds splits \(train\).*data\['train'\]"),
        ({"math": IterableDataset.from_generator(lambda: iter(()))}, r"\['math'\]: rows must be a .*Streams cannot"),
        (None, "train_dataset: none is given. Give a mapping"),
    ],
)
def test_data_that_is_no_rows_is_refused(data, message, build):
    with pytest.raises(DomainError, match=message):
        build(data)


def test_a_split_is_no_held_out_domain_either(build):
    with pytest.raises(DomainError, match=r"eval_dataset: a DatasetDict holds splits"):
        build(held_out=DatasetDict(test=Dataset.from_list(DATA["math"])))


def test_an_environment_without_rows_is_told_what_rows_are_for(build):
    with pytest.raises(DomainError, match="Even where the environment makes every prompt, rows say which domain"):
        build(None, more={"environment_factory": object})


# Evaluation


def held_out(n, name=None):
    return [{"prompt": f"{i}-{i}="} | ({"domain": name} if name else {}) for i in range(n)]


@pytest.mark.parametrize("data", [{"math": held_out(2)}, Dataset.from_list(held_out(2, "math"))], ids=["map", "column"])
def test_another_dataset_is_evaluated_by_domain_and_forgotten(data, build):
    seen = {"math": Seen(), "code": Seen()}
    trainer = build(rewards=seen, held_out={"code": DATA["code"][:2]})
    for asked in (data, None, data):
        seen["math"].columns.clear()
        metrics = trainer.evaluate(asked) if asked is not None else trainer.evaluate()
        assert ("eval_reward/math" in metrics, "eval_reward/code" in metrics) == (asked is not None, asked is None)
    assert {*seen["math"].all("prompts")} == {"0-0=", "1-1="}
    assert set(trainer.held_out) == {"math", "code"}


def test_predict_takes_another_dataset_too(build):
    output = build().predict({"math": held_out(2)})
    assert math.isfinite(output.metrics["test_loss"])


def test_rows_without_a_domain_are_evaluated_where_no_reward_asks_for_it(build):
    rows = Dataset.from_list(held_out(2))
    assert "eval_reward" in build(rewards=[digits]).evaluate(rows)
    assert "eval_reward/math" in build({"math": DATA["math"]}, {"math": digits}).evaluate(rows)
    with pytest.raises(DomainError, match="eval_dataset: no 'domain' column"):
        build().evaluate(rows)


def test_without_a_dataset_the_error_is_trls(build):
    with pytest.raises(ValueError, match="evaluation requires an eval_dataset"):
        build().evaluate()


# Lengths as TRL counts them


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
@pytest.mark.parametrize("masked", [False, True])
def test_lengths_and_truncation_of_several_turns_are_trls(masked, build):
    ends = [[5, 2, 7, 8, 9, 9], [5, 6, 2, 7, 8, 2]]  # an end token inside, and one at the end as well
    mask = [[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 1]]

    def rollout(prompts, trainer):
        turns = [i % 2 for i in range(len(prompts))]
        return {
            "prompt_ids": [[4, 5]] * len(prompts),
            "completion_ids": [ends[i] for i in turns],
            "logprobs": None,
            "env_mask": [mask[i] for i in turns],
        }

    trainer = build(
        {"math": DATA["math"]}, {"math": digits}, mask_truncated_completions=masked, more={"rollout_func": rollout}
    )
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["truncated/math"] == line["completions/clipped_ratio"] == 0.5
    assert line["completion_length/math"] == line["completions/mean_length"] == 4.5


# A second training, checkpoints


@pytest.mark.parametrize("rule", ["exact", "carry"])
def test_one_trainer_trains_twice(rule, build):
    shares = {"math": 1.0, "code": 1.0} if rule == "exact" else {"math": 2.0, "code": 1.0}
    tape = GradientTape()
    trainer = build(shares=shares, share_rule=rule, steps_per_generation=8, max_steps=3, more={"callbacks": [tape]})
    trainer.train()
    trainer.train()
    assert len(tape.steps) == 6
    assert trainer.surgeon.step == 3


def test_what_a_resumed_run_needs_is_there_when_trl_pushes(build):
    class Pushing(DomainGRPOTrainer):
        pushed = ()

        def _push_from_checkpoint(self, folder):
            self.pushed = {file.name for file in Path(folder).iterdir()}

        def init_hf_repo(self, token=None):
            self.hub_model_id = "nobody/nothing"

    trainer = build(cls=Pushing, push_to_hub=True, save_strategy="steps", save_steps=1, steps_per_generation=8)
    trainer.train()
    assert {"counterpoint_state.json", "counterpoint_buffer.safetensors", "optimizer.pt"} <= trainer.pushed


@pytest.mark.parametrize("mark", ["ds_id", "_fsdp_flattened"])
def test_mixing_reaches_its_checkpoints_on_back_ends_that_a_surgeon_refuses(mark, build):
    trainer = build(strategy="mixed", save_strategy="steps", save_steps=1, max_steps=2)
    trainer._separable = False  # what separable() says there
    for param in trainer.model.parameters():
        setattr(param, mark, 0)
    trainer.train()
    assert trainer.state.global_step == 2

    class Broken(DomainGRPOTrainer):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs) * torch.nan

    broken = build(strategy="mixed", cls=Broken)
    broken._separable = False
    for param in broken.model.parameters():
        setattr(param, mark, 0)
    with pytest.raises(DivergedError, match="the loss is nan"):
        broken.train()


# Refusals before anything is started


@pytest.mark.parametrize("optimizer", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_inside_backward_are_refused_by_name(optimizer, build):
    with pytest.raises(UnsupportedError, match=f"optim='{optimizer}' steps inside backward"):
        build(optim=optimizer)


def test_prompt_tuning_is_refused(build, tiny_model):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UnsupportedError, match="PromptTuningConfig trains tokens in front of the prompt"):
        build(more={"peft_config": config}, model="no such model")


@pytest.mark.parametrize("given", ["text", "object"])
def test_a_grouping_that_does_not_fit_the_model_is_refused_at_construction(given, build, tiny_model):
    model = str(tiny_model) if given == "text" else AutoModelForCausalLM.from_pretrained(tiny_model)
    strategy = Strategy("mine", lambda name, shape: ["a"] * 7, "pcgrad")

    class NeverThere(DomainGRPOTrainer):
        def add_callback(self, callback):
            raise AssertionError("the trainer was built")

    with pytest.raises(GroupingError, match="into 7 slices"):
        build(model=model, strategy=strategy, cls=NeverThere)


def test_what_a_later_trl_may_add_is_refused_until_it_is_proven(build):
    for key, value in (("loss_type", "new"), ("scale_rewards", "rank"), ("importance_sampling_level", "word")):
        with pytest.raises(UnsupportedError, match=f"{key}='{value}' was never shown .* Use one of"):
            build(**{key: value})


# What is logged


def test_completions_are_logged_with_their_domain(build, tmp_path):
    build(log_completions=True, num_completions_to_print=0).train()
    table = pd.concat(map(pd.read_parquet, (tmp_path / "completions").glob("*.parquet")))
    assert table["domain"].value_counts().to_dict() == {"math": 8, "code": 8}
    prompts = {row["prompt"] for row in DATA["math"]}
    assert ((table["domain"] == "math") == table["prompt"].isin(prompts)).all()


def test_norms_and_grams_of_fp16_training_are_of_the_loss_that_was_not_scaled():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    inputs = {name: torch.randn(5, 3).double() for name in ("math", "code")}
    records = []
    for scale in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.zeros(()))  # makes the scale, as the first step does
        surgeon = Surgeon(model, grouping="tensor", weighting="pcgrad")
        for name, rows in inputs.items():
            model.zero_grad()
            (model(rows).square().sum() * scale).backward()
            surgeon.collect(name)
        records.append(unscaled(surgeon.combine(), scaler))
    plain, scaled = records
    torch.testing.assert_close(scaled.gram_GDD, plain.gram_GDD)
    assert surgery_metrics(scaled) == pytest.approx(surgery_metrics(plain))


def test_a_domain_without_gradient_has_no_cosine_and_no_conflict_rate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    surgeon = Surgeon(model, grouping="tensor", weighting="pcgrad")
    for name, factor in (("code", 1.0), ("math", 0.0), ("qa", -1.0)):  # math: every advantage is zero
        model.zero_grad()
        (factor * model(torch.randn(5, 3).double()).square().sum()).backward()
        surgeon.collect(name)
    found = surgery_metrics(surgeon.combine())
    assert {key for key in found if "|" in key} == {"cosine/code|qa", "conflict_rate/code|qa"}
    assert found["conflict_rate"] == found["conflict_rate/code|qa"]
    assert found["grad_norm/math"] == 0


def test_a_reused_reward_keeps_its_name_in_both_domains(build):
    trainer = build(rewards={"math": [digits, shortness], "code": [digits]})
    assert trainer.reward_func_names == ["math/digits", "math/shortness", "code/digits"]
