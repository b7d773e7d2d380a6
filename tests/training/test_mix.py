"""Shares and weights that change while a trainer trains: by a schedule, and by a curriculum."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import yaml

from counterpoint.config import load_config
from counterpoint.engine import resume, train
from counterpoint.errors import ConfigError, CounterpointError, DomainError, UnsupportedError
from counterpoint.surgery import resolve_strategy
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.config import own_settings, quota_sampler
from counterpoint.training.mix import Mix
from counterpoint.training.weighing import Weighing
from trainer_helpers import DATA, REWARDS, GradientTape, grpo_args, relative_error

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CLOCKS = ("time", "runtime", "per_second", "total_flos", "train_loss")


def build(model, tokenizer, folder, tape=None, **overrides):
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6} | overrides
    held_out = {"math": DATA["math"][:2]} if "eval_steps" in overrides else None
    callbacks = [tape] if tape else None
    args = grpo_args(folder, **settings)
    return DomainGRPOTrainer(str(model), REWARDS, args, DATA, held_out, processing_class=tokenizer, callbacks=callbacks)


def lines(trainer, after=0):
    return [
        {key: value for key, value in line.items() if not any(clock in key for clock in CLOCKS)}
        for line in trainer.state.log_history
        if line["step"] > after
    ]


def trained(trainer, key):
    return [line[key] for line in trainer.state.log_history if key in line and "loss" in line]


def check_resumed(make, folder, after):
    """Trains the whole and the later part, and gives the trainer of the whole once both have the same bits."""
    tapes = GradientTape(), GradientTape()
    whole, resumed = make(tapes[0]), make(tapes[1])
    whole.train()
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{after}"))
    assert lines(resumed, after) == lines(whole, after)
    for mine, theirs in zip(tapes[1].steps, tapes[0].steps[after:], strict=True):
        assert relative_error(mine, theirs) == 0
    return whole, resumed


# Schedules

SCHEDULE = [{"step": 2, "shares": {"code": 1, "math": 3}}, {"step": 4, "weights": {"math": 2.0}}]


def test_a_schedule_holds_from_its_steps_on_and_is_resumed(tiny_model, tiny_tokenizer, tmp_path):
    whole, _ = check_resumed(
        lambda tape: build(tiny_model, tiny_tokenizer, tmp_path, tape, schedule=SCHEDULE, loss_type="grpo"), tmp_path, 3
    )
    assert trained(whole, "share_prompts/math") == [0.5] * 2 + [0.75] * 4
    # completions are what loss_type grpo counts by: 3 x 2 beside 1
    assert trained(whole, "effective_weight/math") == pytest.approx([0.5] * 2 + [0.75] * 2 + [6 / 7] * 2)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"schedule": [{"step": 2, "shares": {"math": 2, "code": 1}}]}, DomainError, "schedule, step 2: .*=3 or 6"),
        ({"schedule": [{"step": 2, "shares": {"math": 2}}]}, ConfigError, "no share for code"),
        (
            {"schedule": [{"step": 2, "weights": {"moth": 2}}]},
            ConfigError,
            "unknown domain 'moth': did you mean 'math'",
        ),
        (
            {"schedule": [{"step": 2, "weights": {"math": 2}}], "steps_per_generation": 2},
            UnsupportedError,
            "steps_per_generation=2",
        ),
        (
            {"schedule": [{"step": 2, "shares": {"math": 3, "code": 1}}], "strategy": "mgs-significant"},
            DomainError,
            "'code' has 1",
        ),
        ({"curriculum": "no_such_module_of_mine:mix"}, ConfigError, "no module 'no_such_module_of_mine'"),
        ({"curriculum": "math:pi"}, ConfigError, "is float. Give a function"),
        ({"curriculum": len, "dataloader_num_workers": 1}, UnsupportedError, "dataloader_num_workers=1"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(settings, error, message, tmp_path):
    with pytest.raises(error, match=message):
        DomainGRPOTrainer("no model", REWARDS, grpo_args(tmp_path, **settings), DATA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": [{"step": 2}]}, r"schedule\.0: changes nothing"),
        ({"schedule": [{"step": 2, "weights": {}}, {"step": 2, "weights": {}}]}, r"schedule\.1\.step: 2 does not come"),
        ({"schedule": [{"step": -1, "weights": {}}]}, r"schedule\.0\.step: should be greater"),
        ({"schedule": [{"step": 1, "weights": {"math": -2}}]}, "should be greater than 0, found -2"),
        ({"schedule": [{"step": 1, "weights": {"math": math.inf}}]}, "finite"),
        ({"schedule": [{"stop": 1, "weights": {}}]}, "unknown key.*did you mean 'step'"),
        ({"schedule": "[{"}, "no JSON"),
        ({"curriculum": "mine"}, "curriculum"),
        ({"curriculum": {"function": "mine:mix", "every": 0}}, r"curriculum\.every"),
        ({"curriculum": "mine:mix", "schedule": [{"step": 2, "weights": {}}]}, "both a schedule and a curriculum"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_with_their_place(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        grpo_args(tmp_path, **settings)


# Curricula


class Chooser:
    """A curriculum that follows the rewards, changes what it is given, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, history, mix):
        self.asked.append(copy.deepcopy((history, mix)))
        last = history[-1]
        math, code = (last["reward"].get(name, 0.0) for name in ("math", "code"))
        math += last.get("held_out", {}).get("math", 0.0)
        history.clear()
        mix["shares"].clear()
        return {"shares": {"math": 1 + 7 * math, "code": 1 + code}, "weights": {"math": 1 + math}}


@pytest.mark.parametrize(
    "overrides",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"steps_per_generation": 8},  # the checkpoint falls into the middle of a generation
        {"num_iterations": 2},
    ],
    ids=str,
)
def test_a_curriculum_sees_the_past_alone_and_is_resumed(overrides, tiny_model, tiny_tokenizer, tmp_path):
    choosers = []

    def make(tape):
        choosers.append(Chooser())
        more = {"curriculum": choosers[-1], "share_rule": "carry", "per_device_train_batch_size": 2}
        more |= {"num_generations": 2, "gradient_accumulation_steps": 4} | overrides
        return build(tiny_model, tiny_tokenizer, tmp_path, tape, **more)

    whole, resumed = check_resumed(make, tmp_path, after=3)
    assert [change.model_dump() for change in whole._mix.changes] == [
        change.model_dump() for change in resumed._mix.changes
    ]
    assert len(set(trained(whole, "effective_weight/math"))) > 2
    counts = [whole._sampler.quotas.counts(step // whole.num_iterations) for step in range(6)]
    assert trained(whole, "share_prompts/math") == [math / (math + code) for math, code in counts]
    assert len({math for math, _ in counts}) > 1
    newest = [history[-1]["step"] for history, _ in choosers[0].asked]
    changed = [change.step for change in whole._mix.changes]
    assert all(step <= change - 2 for step, change in zip(newest, changed, strict=True))
    assert len(changed) == len(set(changed)) >= 3
    for (_, mix), before in zip(choosers[0].asked[1:], whole._mix.changes, strict=False):
        assert mix == {"shares": before.shares, "weights": {"code": 1.0, **before.weights}}
    history = whole._mix.history
    assert [record["reward"].keys() for record in history] == [{"math", "code"}] * len(history)
    if "eval_steps" in overrides:
        assert ["held_out" in record for record in history] == [False, False, True, True, True, True]
        assert newest == [0, 1, 2, 3, 4, 5]
        means = [line["eval_reward/math"] for line in whole.state.log_history if "eval_reward/math" in line]
        assert [record["held_out"]["math"] for record in history[2::2]] == means[:2]


# Without a model


def mix_of(function, folder, domains=("math", "code"), every=1, **settings):
    args = grpo_args(folder, curriculum={"function": function, "every": every}, **settings)
    own, sizes = own_settings(args), dict.fromkeys(domains, 8)
    shares, strategy = dict.fromkeys(domains, 1.0), resolve_strategy(own["strategy"])
    sampler = quota_sampler(args, sizes, shares, own["share_rule"])
    return Mix(args, own, shares, sampler, strategy, Weighing("none", args, domains), {"math": math.nan})


def broken(history, mix):
    raise KeyError("nothing")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"shares": {"math": 1, "cod": 1}}, "unknown domain 'cod': did you mean 'code'"),
        ({"shares": {"math": 1}}, "no share for code"),
        ({"weights": {"math": -1}}, r"weights\['math'\] is -1"),
        ({"weights": {"math": math.nan}}, r"weights\['math'\] is nan"),
        ({"weights": {"math": "2"}}, r"weights\['math'\] is '2'"),
        ({"weights": {"math": 10**400}}, "must be a positive finite number"),
        ({"weights": {"math": True}}, r"weights\['math'\] is True"),
        ({"weights": [1, 2]}, "weights must be a mapping"),
        ({"share": {"math": 1, "code": 1}}, "unknown key 'share'.*did you mean 'shares'"),
        ([1], "it must be a mapping"),
        ({"shares": {"math": 2, "code": 1}}, "=3 or 6 would do.*share_rule: carry"),
    ],
    ids=str,
)
def test_what_a_curriculum_returns_is_checked(found, message, tmp_path):
    mix = mix_of(lambda history, mix: found, tmp_path)
    with pytest.raises(ConfigError, match=rf"For step 2 the curriculum .*{message}"):
        mix.settle(0)
    assert mix.shares(9) == {"math": 1.0, "code": 1.0}


def test_what_a_curriculum_raises_stops_training_with_its_words(tmp_path):
    with pytest.raises(ConfigError, match=r"For step 2 the curriculum '.*:broken' raised KeyError: 'nothing'"):
        mix_of(broken, tmp_path).settle(0)
    entropy = mix_of(lambda history, mix: {"weights": {"math": 2}}, tmp_path, steps_per_generation=2)
    with pytest.raises(CounterpointError, match="steps_per_generation=2"):
        entropy.settle(0)


def test_each_key_changes_alone_and_none_changes_nothing(tmp_path):
    answers = iter(
        [None, {"shares": {"math": 3, "code": 1}}, {"weights": {"math": 2}}, {"shares": None}, {"weights": {}}]
    )
    mix = mix_of(lambda history, mix: next(answers), tmp_path)
    for step in range(5):
        mix.see(step, {"reward/math": (math.nan, 4), "reward/code": (0.5, 4), "other": (1.0, 8)})
        mix.settle(step)
    assert [dict(mix.shares(step)) for step in (2, 3, 9)] == [
        {"math": 1.0, "code": 1.0}, {"math": 3.0, "code": 1.0}, {"math": 3.0, "code": 1.0}
    ]  # fmt: skip
    assert [dict(mix.weights(step)) for step in (3, 4, 5, 6)] == [{}, {"math": 2.0}, {"math": 2.0}, {}]
    assert mix.history[0] == {"step": 0, "reward": {"code": 0.5}}
    assert mix._sampler.quotas.counts(2) == [2, 2]
    assert mix._sampler.quotas.counts(3) == [3, 1]
    kept = copy.deepcopy(mix.state_dict())
    mix.forget()
    assert mix._sampler.quotas.counts(3) == [2, 2]
    mix.forget(kept)
    assert (mix.state_dict(), mix._sampler.quotas.counts(3)) == (kept, [3, 1])


def test_a_curriculum_is_asked_every_so_many_steps(tmp_path):
    asked = []
    mix = mix_of(lambda history, mix: asked.append(SimpleNamespace(**mix)), tmp_path, every=3, num_iterations=2)
    calls = []
    for step in range(14):
        before = len(asked)
        mix.settle(step)
        calls += [step + 2] * (len(asked) - before)
    assert calls == [4, 6, 10, 12]  # the first new generation from step 3, 6, 9 and 12 on


# Whole runs

NOT_COMPARED = {"time", "step_time", "step_seconds", "seconds", "epoch", "when", "stage"}

MODULE = """
from pathlib import Path

def next_mix(history, mix):
    if Path(__file__).with_name("stop").exists():
        raise ValueError("stopped")
    last = history[-1]
    seen.append(last)
    return {"shares": {"math": 1 + 3 * last["held_out"]["math"], "code": 1 + last["reward"].get("code", 0.5)}}

seen = []

def shape(completions, **_):
    return [sum(map(str.islower, text)) / 8 for text in completions]
"""


def run_settings(model, folder, name, steps):
    domain = {"source": "pocket", "reward": "runs_of_a_curriculum:shape"}
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_generations": 2}
    return {
        "model": str(model),
        "strategy": "mgs",
        "domains": {"math": domain, "code": domain},
        "share_rule": "carry",
        "curriculum": "runs_of_a_curriculum:next_mix",
        "training": {"max_steps": steps, "learning_rate": 1e-2, "max_completion_length": 6}
        | {"lr_scheduler_type": "constant", "gradient_checkpointing": False}
        | batch,
        "evaluation": {"prompts": 4, "samples": 1, "greedy": False, "every": 1},
        "run": {"dir": str(folder), "name": name, "save_every": 2, "device": "cpu"},
    }


@pytest.mark.slow
def test_a_run_stopped_by_its_curriculum_goes_on_once_that_is_mended(tiny_model, tmp_path):
    (tmp_path / "runs_of_a_curriculum.py").write_text(MODULE)

    def config(name, steps):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(run_settings(tiny_model, tmp_path, name, steps)))
        return load_config(path)

    def numbers(run, file):
        kept = ({k: v for k, v in row.items() if k not in NOT_COMPARED} for row in run.lines(file))
        return sorted(kept, key=lambda row: (row["step"], row.get("domain", "")))

    whole = train(config("whole", 5), "whole")
    import runs_of_a_curriculum as module

    seen = list(module.seen)
    assert [record["step"] for record in seen] == [0, 1, 2, 3, 4]
    assert len({record["held_out"]["math"] for record in seen}) > 1
    module.seen.clear()
    (tmp_path / "stop").touch()
    with pytest.raises(ConfigError, match=r"raised ValueError: stopped\. Mend it, then resume"):
        train(config("stopped", 3), "stopped")
    (tmp_path / "stop").unlink()
    resume(tmp_path / "stopped")  # before the first checkpoint
    run = resume(tmp_path / "stopped", longer=["training.max_steps=5"])
    assert module.seen == seen
    assert numbers(run, "metrics.jsonl") == numbers(whole, "metrics.jsonl")
    assert numbers(run, "evals.jsonl") == numbers(whole, "evals.jsonl")
    shares = {row["share_prompts/math"] for row in run.lines("metrics.jsonl")}
    assert len(shares) > 1
    saved = json.loads((run.checkpoint_path(5) / "counterpoint_state.json").read_text())
    assert [record["held_out"] for record in saved["mix"]["history"]] == [record["held_out"] for record in seen]
