"""Mistakes are refused before training starts; what happens later loses nothing."""

import errno
import json
import os
import re
import shutil
import signal
import sys
import types

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from counterpoint.config import parse_config
from counterpoint.disk import disk_errors
from counterpoint.engine import Interrupted, check_config, plan_run, resume, train
from counterpoint.errors import (
    ConfigError,
    DivergedError,
    DomainError,
    GroupingError,
    ModelError,
    RewardError,
    RunError,
)
from counterpoint.models import check_model, load_model, load_tokenizer
from counterpoint.runs import RunDirectory

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Listener:
    """A reporter that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def message(self, text):
        self.heard.append(text)

    def evaluating(self, *args):
        pass

    def evaluated(self, when, step, scores):
        self.heard.append((when, step, len(scores)))

    def training(self, step, total, metrics):
        self.heard.append((step, total))


def settings(model, folder, **overrides):
    training = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 4,
        "gradient_checkpointing": False,
    } | overrides.pop("training", {})
    return {
        "model": str(model),
        "strategy": "mgs",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": training,
        "evaluation": {"prompts": 4, "samples": 1, "greedy": False},
        "run": {"dir": str(folder), "name": "run", "save_every": 2, "samples": 1, "device": "cpu"},
    } | overrides


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (
            {"learning_rat": 1e-5},
            r"training.learning_rat: not a setting of trl.GRPOConfig; did you mean 'learning_rate'\?",
        ),
        ({"num_generations": 3}, r"training.num_generations: TRL cannot use these settings: .*divisible"),
        ({"loss_type": "bnpo"}, r"loss_type='bnpo' divides by the tokens of each micro-batch"),
        ({"gradient_accumulation_steps": 3}, r"cannot be met .* gradient_accumulation_steps=2 or 4 would do"),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 6},
            r"gradient_accumulation_steps=4 or 8 would",
        ),
    ],
)
def test_settings_of_training_are_checked_by_building_them(training, message, tiny_model, tmp_path):
    config = parse_config(settings(tiny_model, tmp_path, training=training))
    assert re.search(message, "\n".join(check_config(config)))
    with pytest.raises(ConfigError, match=message):
        plan_run(config)


def test_a_good_configuration_has_no_problems(tiny_model, tmp_path):
    assert check_config(parse_config(settings(tiny_model, tmp_path))) == []


def test_a_path_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    config = parse_config(settings(tmp_path, tmp_path))
    with pytest.raises(ModelError, match=r"no model configuration could be read"):
        train(config, "x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "models/of/mine"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(path, tiny_model, tmp_path):
    config = parse_config(settings(tiny_model, tmp_path) | {"model": path})
    with pytest.raises(ModelError, match=f"{path}: there is no such folder"):
        train(config, "x")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 5000, b'{"version": 5}', b"\xff"])
def test_damaged_files_of_a_model_are_refused(tiny_model, tmp_path, name, content):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / name).write_bytes(content)
    model = parse_config(settings(folder, tmp_path)).model
    with pytest.raises(ModelError, match=re.escape(str(folder))):
        check_model(model), load_tokenizer(model), load_model(model)


def test_pickled_weights_are_not_read(tiny_model, tmp_path):
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model / name).read_bytes())
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no .safetensors weights there, found config.json, pytorch_model.bin"):
        train(parse_config(settings(folder, tmp_path)), "x")


def test_a_tokenizer_without_chat_template_is_refused_where_one_is_needed(tiny_model, tmp_path):
    domains = {"math": {"source": "pocket", "chat": True}, "code": {"source": "pocket"}}
    with pytest.raises(DomainError, match=r"domains.math: .*chat template"):
        train(parse_config(settings(tiny_model, tmp_path, domains=domains)), "x")


def test_a_run_is_never_overwritten(tiny_model, tmp_path):
    config = parse_config(settings(tiny_model, tmp_path))
    run = train(config, "x")
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"already holds a run.*--resume"):
        train(config, "x")
    assert (run.path / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_resumes_to_itself(tiny_model, tmp_path):
    run = train(parse_config(settings(tiny_model, tmp_path)), "x")
    before = {name: (run.path / name).read_bytes() for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl")}
    listener = Listener()
    resume(run.path, listener)
    assert {name: (run.path / name).read_bytes() for name in before} == before
    assert listener.heard == []


def test_ctrl_c_outside_a_step_is_an_interruption_too(tiny_model, tmp_path):
    class Impatient(Listener):
        def evaluating(self, *args):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        train(parse_config(settings(tiny_model, tmp_path)), "x", Impatient())
    run = RunDirectory.open(tmp_path / "run", write=False)
    assert run.state["status"] == "interrupted"
    resume(run.path)
    assert RunDirectory.open(run.path, write=False).state["status"] == "done"


def test_sigterm_during_an_evaluation_is_an_interruption_too(tiny_model, tmp_path):
    class Stopped(Listener):
        def evaluating(self, *args):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(parse_config(settings(tiny_model, tmp_path)), "x", Stopped())
    run = RunDirectory.open(tmp_path / "run", write=False)
    assert (run.state["status"], run.lines("evals.jsonl")) == ("interrupted", [])
    resume(run.path)
    assert RunDirectory.open(run.path, write=False).state["status"] == "done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_last_evaluation_at_once(tiny_model, tmp_path, number):
    class Stopped(Listener):
        def evaluating(self, when, *args):
            if when == "after":
                os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(Interrupted):
            train(parse_config(settings(tiny_model, tmp_path)), "x", Stopped())
    finally:
        signal.signal(signal.SIGINT, before)
    run = RunDirectory.open(tmp_path / "run", write=False)
    assert (run.state["status"], {line["when"] for line in run.lines("evals.jsonl")}) == ("interrupted", {"before"})
    resume(run.path)
    assert RunDirectory.open(run.path, write=False).state["status"] == "done"


def test_prompts_that_are_too_long_are_dropped_and_counted(tiny_model, tmp_path):
    listener = Listener()
    run = train(parse_config(settings(tiny_model, tmp_path, max_prompt_tokens=12)), "x", listener)
    rows = run.state["rows"]["code"]
    assert rows["dropped_too_long"] > 0
    assert rows["rows_read"] == rows["train_rows"] + rows["dropped_too_long"] + rows["dropped_held_out"]
    (said,) = [text for text in listener.heard if str(text).startswith("code: ")]
    assert f"{rows['train_rows']:,} rows to train on, 4 held out" in said
    assert f"{rows['dropped_too_long']:,} too long" in said


def test_a_reward_that_fails_later_leaves_the_checkpoint_and_says_so(tiny_model, tmp_path, monkeypatch):
    module = tmp_path / "failing_reward.py"
    module.write_text(
        "calls = 0\n"
        "def shaky(completions, **_):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls > 4:\n"
        "        raise OSError('the judge is gone')\n"
        "    return [float(len(c)) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = {"source": "pocket", "reward": "failing_reward:shaky"}
    listener = Listener()
    config = parse_config(settings(tiny_model, tmp_path, domains={"math": reward, "code": {"source": "pocket"}}))
    with pytest.raises(
        RewardError, match=r"domain 'math': reward 'failing_reward:shaky' raised OSError: the judge is gone"
    ):
        train(config, "x", listener)
    run = RunDirectory.open(tmp_path / "run", write=False)
    assert run.state["status"] == "failed"
    assert [step for step, _ in run.checkpoints()] == [2]
    assert listener.heard[-1] == f"The last whole checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-2'}"


@pytest.mark.parametrize("save_every", [1, 4])
def test_weights_that_are_no_numbers_stop_the_run_and_are_never_saved(save_every, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "length_reward.py").write_text(
        "def size(completions, **_):\n    return [len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    domains = {name: {"source": "pocket", "reward": "length_reward:size"} for name in ("math", "code")}
    training = {"learning_rate": 1e38, "max_grad_norm": 0.0, "max_completion_length": 8}
    config = settings(tiny_model, tmp_path, domains=domains, training=training)
    config["run"] |= {"save_every": save_every}
    with pytest.raises(DivergedError, match=r"Step \d: .*(not numbers|no longer numbers|loss is nan)"):
        train(parse_config(config), "x")
    run = RunDirectory.open(tmp_path / "run", write=False)
    assert run.state["status"] == "failed"
    for _, path in run.checkpoints():
        assert all(tensor.isfinite().all() for tensor in load_file(path / "model.safetensors").values())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/12"),
    ],
    ids=["os", "safetensors", "torch"],
)
def test_a_full_disk_is_one_sentence_with_the_way_on(error, tmp_path):
    with (
        pytest.raises(RunError, match=r"cannot be written .*counterpoint train --resume"),
        disk_errors(tmp_path, around_other_work=True),
    ):
        raise error


@pytest.mark.parametrize("error", [FileNotFoundError("x"), RuntimeError("x"), SafetensorError("header too small")])
def test_other_errors_are_left_alone(error, tmp_path):
    with pytest.raises(type(error), match=str(error)), disk_errors(tmp_path, around_other_work=True):
        raise error


def test_metrics_have_one_line_per_step_and_no_nan(tiny_model, tmp_path):
    run = train(parse_config(settings(tiny_model, tmp_path)), "x")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["loss"] is not None for line in lines)
    assert [(e["when"], e["domain"]) for e in run.lines("evals.jsonl")] == [
        ("before", "math"),
        ("before", "code"),
        ("after", "math"),
        ("after", "code"),
    ]


def test_sequential_leaves_a_checkpoint_and_an_evaluation_of_all_domains_after_every_stage(tiny_model, tmp_path):
    strategy = {"name": "sequential", "order": ["code", "math", "code"]}
    config = settings(tiny_model, tmp_path, strategy=strategy, training={"max_steps": 6})
    config["run"] |= {"save_every": 1, "keep": 1}
    run = train(parse_config(config), "x")
    assert [step for step, _ in run.checkpoints()] == [2, 4, 6]
    evaluated = [(e["when"], e["step"], e["domain"]) for e in run.lines("evals.jsonl")]
    assert evaluated == [
        (when, step, domain)
        for when, step in (("before", 0), ("stage", 2), ("stage", 4), ("after", 6))
        for domain in ("math", "code")
    ]
    lines = run.lines("metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert ["reward/math" in line for line in lines] == [False, False, True, True, False, False]


def test_a_grouping_without_a_group_for_some_parameter_is_refused_before_weights_are_read(
    tiny_model, tmp_path, monkeypatch
):
    rules = types.ModuleType("own_rules")
    rules.by = lambda name, shape: "" if "mlp" in name else "all"
    monkeypatch.setitem(sys.modules, "own_rules", rules)
    monkeypatch.setattr("counterpoint.engine.prepare.load_model", lambda *_: pytest.fail("weights were read"))
    strategy = {"grouping": "own_rules:by", "weighting": "pcgrad"}
    with pytest.raises(GroupingError, match="mlp"):
        train(parse_config(settings(tiny_model, tmp_path, strategy=strategy)), "x")
    assert not (tmp_path / "run").exists()


def test_adapters_for_modules_that_the_model_lacks_are_refused_before_weights_are_read(tiny_model, tmp_path):
    model = {"path": str(tiny_model), "lora": {"r": 2, "target_modules": ["nowhere"]}}
    with pytest.raises(ModelError, match=r"model.lora: .*nowhere"):
        train(parse_config(settings(tiny_model, tmp_path) | {"model": model}), "x")
    assert not (tmp_path / "run").exists()
