"""``counterpoint config``."""

import json
import os

import pytest
import torch
from typer.testing import CliRunner

from counterpoint.cli.config import app, check_memory
from counterpoint.config import load_config
from counterpoint.errors import ConfigError, DomainError, ModelError, RunError

GOOD = "domains:\n  math: {source: pocket}\ntraining: {max_steps: 2}\nrun: {device: cpu}\n"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_schema():
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["properties"]["domains"]["description"].startswith("Name -> domain")


def test_check_reports_the_file_before_anything_heavy(tmp_path):
    (tmp_path / "c.yaml").write_text("strategy: mgss\n" + GOOD)
    result = run("check", tmp_path / "c.yaml")
    assert isinstance(result.exception, ConfigError)
    assert "unknown strategy 'mgss'" in str(result.exception)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers' own deprecations
def test_check_builds_the_configuration_of_trl(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD)
    result = run("check", tmp_path / "c.yaml")
    assert result.exit_code == 0, result.exception
    assert "c.yaml: fine. Strategy mgs, 2 steps, 1.8 million parameters" in result.stdout
    assert run("check", tmp_path / "c.yaml", "--show").stdout.startswith("model:\n  path: pocket\n")
    result = run("check", tmp_path / "c.yaml", "--set", "training.learning_rat=1")
    assert isinstance(result.exception, ConfigError)
    assert "learning_rat" in str(result.exception)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_check_says_what_the_domains_will_weigh(tmp_path):
    file = tmp_path / "c.yaml"
    two = GOOD.replace("domains:", "domains:\n  chat: {source: {type: pocket, task: qa}}")
    file.write_text(two.replace("max_steps: 2", "max_steps: 2, gradient_accumulation_steps: 2"))
    assert "Weights: loss_type 'dapo' counts a domain by the tokens" in run("check", file).stdout
    result = run("check", file, "--lengths", "chat=800,math=120")
    assert "math has 50% of the prompts and 13% of the loss" in result.stdout
    assert "Weights: balance tokens." in run("check", file, "--set", "balance=tokens").stdout
    assert "Weights" not in run("check", file, "--set", "training.loss_type=grpo").stdout


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_check_is_the_whole_preflight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(
        "model: nowhere\ndomains:\n  a: {source: gone.jsonl, prompt: '{q}', reward: mine:score}\n"
        "  math: {source: pocket}\ntraining: {max_steps: 2, gradient_accumulation_steps: 2}\nrun: {device: cpu}\n"
    )
    result = run("check", "c.yaml")
    assert isinstance(result.exception, ConfigError | ModelError)
    assert "nowhere" in str(result.exception)
    result = run("check", "c.yaml", "--set", "model=pocket")
    assert isinstance(result.exception, DomainError)
    assert "domains.a" in str(result.exception)
    (tmp_path / "c.yaml").write_text(GOOD)
    (tmp_path / "runs" / "c-mgs").mkdir(parents=True)
    (tmp_path / "runs" / "c-mgs" / "thesis.tex").touch()
    result = run("check", "c.yaml")
    assert isinstance(result.exception, RunError)
    assert "thesis.tex" in str(result.exception)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)  # a machine of one byte
    result = run("check", "c.yaml", "--set", "run.name=other")
    assert isinstance(result.exception, ConfigError)
    assert "Memory" in str(result.exception)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_check_counts_the_rows_of_every_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = "[{type: pocket, task: math, size: 90, share: 3}, {type: pocket, task: qa, size: 50, share: 1}]"
    settings = "training: {max_steps: 2}\nevaluation: {prompts: 8}\nrun: {device: cpu}\n"
    (tmp_path / "c.yaml").write_text(f"domains:\n  d: {{source: {sources}}}\n{settings}")
    result = run("check", "c.yaml")
    assert result.exit_code == 0, result.exception
    assert "d: 140 rows to train on, 8 held out\n" in result.stdout
    assert "  math: 90 rows to train on, 6 held out\n  qa: 50 rows to train on, 2 held out\n" in result.stdout


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_check_imports_own_rewards_and_metrics_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "my_checked_rewards.py").write_text("def polite(completions, **_): return [1.0] * len(completions)\n")
    own = GOOD.replace(
        "{source: pocket}", "{source: pocket, reward: [pocket, 'my_checked_rewards:polite'], metrics: M}"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "c.yaml").write_text(own.replace("M", "repetition"))
    assert "fine" in run("check", "../c.yaml").stdout
    (tmp_path / "c.yaml").write_text(own.replace("M", "'my_checked_rewards:polit'"))
    found = str(run("check", "../c.yaml").exception)
    assert "domains.math: Reward 'my_checked_rewards:polit': 'my_checked_rewards' has no 'polit'" in found
    (tmp_path / "c.yaml").write_text(own.replace("M", "absent_rewards:x"))
    assert "there is no module 'absent_rewards'" in str(run("check", "../c.yaml").exception)


def test_memory_that_one_process_lacks_may_be_there_on_several(tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(GOOD.replace("run: {device: cpu}\n", ""))
    config = load_config(tmp_path / "c.yaml")
    needed = 16 * 1_800_000  # weights, gradient and two moments of the pocket model, in float32
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(os, "sysconf", lambda name: 1)
    assert "`counterpoint plan`" in check_memory(config)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for gpus, share in ((1, 2), (4, 0.5)):
        monkeypatch.setattr(torch.accelerator, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda share=share: (0, int(share * needed)))
        assert ("on each of 4 GPUs with FSDP2" in check_memory(config)) == (gpus == 4)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda: (0, needed // 10))
    with pytest.raises(ConfigError, match="Memory"):
        check_memory(config)
