"""A run directory from a script: the same files as from a configuration, and the commands that read them."""

import warnings

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.config import load_config
from counterpoint.diagnosis import routes
from counterpoint.diagnosis.subject import open_subject
from counterpoint.errors import DomainError, RewardError, RunError
from counterpoint.runs import RunDirectory
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.scripted import reward_path
from ranks_helper import run_ranks
from trainer_helpers import DATA, REWARDS, grpo_args, letters
from trainer_ranks import take_up_from_the_start

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

HELD_OUT = {
    "math": [{"prompt": f"{i}+{i}=", "answer": str(2 * i)} for i in range(7, 10)],
    "code": [{"prompt": f'up("{c}")=', "answer": c.upper()} for c in "xyz"],
}


def build(model, tokenizer, folder, rewards=REWARDS, **settings):
    chosen = {"max_steps": 3, "save_steps": 2, "save_strategy": "steps"} | settings
    args = grpo_args(folder / "unused", run=str(folder / "mine"), **chosen)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    return DomainGRPOTrainer(loaded, rewards, args, DATA, HELD_OUT, processing_class=tokenizer)


@pytest.fixture(scope="module")
def script_run(tiny_model, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("script")
    changes = {"shares": {"math": 1, "code": 1}, "schedule": [{"step": 1, "weights": {"math": 2.0}}]}
    build(tiny_model, tiny_tokenizer, folder, **changes, temperature=0.9).train()
    return folder / "mine"


def test_the_run_holds_what_a_configurations_run_holds(script_run):
    run = RunDirectory.open(script_run, write=False)
    assert run.state["status"] == "done"
    assert [(stage["domains"], stage["last_step"]) for stage in run.state["stages"]] == [(["math", "code"], 3)]
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in run.lines("grams.jsonl")] == [1, 2, 3]
    evals = [(line["when"], line["step"], line["domain"], line["prompts"]) for line in run.lines("evals.jsonl")]
    assert evals == [(w, s, d, 3) for w, s in (("before", 0), ("after", 3)) for d in ("math", "code")]
    assert all(line["low"] <= line["mean"] <= line["high"] for line in run.lines("evals.jsonl"))
    assert [step for step, _ in run.checkpoints()] == [2, 3]
    assert run.lines("samples.jsonl")


def test_other_commands_find_domains_rewards_and_settings(script_run, tiny_model, monkeypatch):
    config = load_config(script_run / "config.yaml")
    assert config.strategy.label == "mgs"
    assert config.training["temperature"] == 0.9
    assert config.schedule[0].weights == {"math": 2.0}
    assert config.domains["math"].reward[0].name == "trainer_helpers:digits"
    subject = open_subject(script_run, script_run / "checkpoints" / "step-3")
    assert [row["prompt"] for row in subject.domains["code"].evaluation] == [row["prompt"] for row in HELD_OUT["code"]]
    assert [row["answer"] for row in subject.domains["math"].train] == [row["answer"] for row in DATA["math"]]


COMMANDS = [
    ["report", "RUN"],
    ["diagnose", "RUN", "--only", "edits"],
    ["compare", "RUN", "BASE", "step-3", "--out", "OUT"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_read_the_run(command, script_run, tiny_model, tmp_path):
    places = {"BASE": str(tiny_model), "OUT": str(tmp_path / "compared"), "RUN": str(script_run)}
    found = CliRunner().invoke(app, [places.get(word, word) for word in command])
    assert found.exit_code == 0, found.output


def test_routes_are_measured_on_the_runs_domains(script_run):
    found = routes(script_run, script_run / "checkpoints" / "step-3", prompts=4, samples=2)
    assert {route.domain for route in found.routes} == {"math", "code"}


def test_a_run_is_taken_up_and_never_overwritten(tiny_model, tiny_tokenizer, tmp_path):
    build(tiny_model, tiny_tokenizer, tmp_path, max_steps=3, save_steps=1).train()
    whole = RunDirectory.open(tmp_path / "mine", write=False).lines("evals.jsonl")
    with pytest.raises(RunError, match="already"):
        build(tiny_model, tiny_tokenizer, tmp_path, max_steps=3, save_steps=1).train()
    (tmp_path / "again").mkdir()
    build(tiny_model, tiny_tokenizer, tmp_path / "again", max_steps=3, save_steps=1)

    class Killed(Exception):
        pass

    trainer = build(tiny_model, tiny_tokenizer, tmp_path / "again", max_steps=3, save_steps=1)
    step = trainer.training_step

    def dies(*args, **kwargs):
        if trainer.state.global_step == 2:
            raise Killed
        return step(*args, **kwargs)

    trainer.training_step = dies
    with pytest.raises(Killed):
        trainer.train()
    assert RunDirectory.open(tmp_path / "again" / "mine", write=False).state["status"] == "failed"
    build(tiny_model, tiny_tokenizer, tmp_path / "again", max_steps=3, save_steps=1).train(resume_from_checkpoint=True)
    run = RunDirectory.open(tmp_path / "again" / "mine", write=False)
    assert run.state["status"] == "done"
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 2, 3]
    assert [line["scores"] for line in run.lines("evals.jsonl")] == [line["scores"] for line in whole]


def test_two_ranks_take_up_a_run_that_died_before_its_first_checkpoint(tiny_model, tmp_path):
    first, second = run_ranks(take_up_from_the_start, 2, str(tiny_model), tmp_path)
    assert first == second
    run = RunDirectory.open(tmp_path / "mine", write=False)
    assert run.state["status"] == "done"
    evals = [(line["when"], line["step"], line["domain"]) for line in run.lines("evals.jsonl")]
    assert evals == [(w, s, d) for w, s in (("before", 0), ("after", 2)) for d in ("math", "code")]


def test_what_cannot_be_a_run_is_refused_before_training(tiny_model, tiny_tokenizer, tmp_path):
    args = grpo_args(tmp_path / "unused", run=str(tmp_path / "mine"))
    with pytest.raises(DomainError, match="no held-out rows of code"):
        DomainGRPOTrainer(
            str(tiny_model), REWARDS, args, DATA, {"math": HELD_OUT["math"]}, processing_class=tiny_tokenizer
        )
    scorer = AutoModelForSequenceClassification.from_config(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=300)
    )
    with pytest.raises(RewardError, match="of 'code' is a model"):
        build(tiny_model, tiny_tokenizer, tmp_path, rewards={"math": letters, "code": scorer})
    with pytest.raises(RunError, match="load_best_model_at_end"):
        build(tiny_model, tiny_tokenizer, tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2)
    assert not (tmp_path / "mine").exists()


def test_rewards_are_named_by_where_others_find_them():
    assert reward_path(letters) == "trainer_helpers:letters"
    with pytest.warns(UserWarning, match="no place from which"):
        assert reward_path(lambda completions, **_: [0.0] * len(completions)).endswith(":unknown")
    from counterpoint.rewards import build_reward

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reward_path(build_reward("math", strict=True)) == "math"
