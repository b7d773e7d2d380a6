"""Runs whose reward misbehaves end with one sentence and a status that is not zero; modules are found the same way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import counterpoint
from counterpoint.config import parse_config
from counterpoint.engine import train
from counterpoint.errors import ConfigError, RewardError
from counterpoint.runs import RunDirectory


def settings(model, folder, domains):
    return {
        "model": str(model),
        "domains": domains,
        "training": {
            "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4,
            "max_completion_length": 4, "gradient_checkpointing": False,
        },
        "evaluation": {"prompts": 2, "samples": 1, "greedy": False},
        "run": {"dir": str(folder), "name": "run", "device": "cpu"},
    }  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*pin_memory.*")

REWARDS = {
    "exits": "if calls > 1: sys.exit(0)",
    "a_dict": "if calls > 1: return {i: float(i) for i in range(len(completions))}",
    "huge": "if calls > 1: return [10 ** 400 for _ in completions]",
    "beyond": "if calls > 1: return [1e39 for _ in completions]",
    "nearly": "if calls > 1: return [1e30 * len(c) for c in completions]",
    "huge_at_once": "return [1e308 for _ in completions]",
    "nearly_at_once": "return [1e20 for _ in completions]",
}


def write_rewards(folder):
    lines = ["import sys", "calls = 0"]
    for name, body in REWARDS.items():
        lines += [f"def {name}(completions, **_):", "    global calls", "    calls += 1", f"    {body}"]
        lines += ["    return [float(len(c)) for c in completions]"]
        lines += [f"async def later_{name}(**arguments):", f"    return {name}(**arguments)"]
    (folder / "bad_rewards_of_runs.py").write_text("\n".join(lines) + "\n")


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    write_rewards(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("bad_rewards_of_runs", None)


def domains(reward):
    return {"math": {"source": "pocket", "reward": reward}, "code": {"source": "pocket"}}


@pytest.mark.parametrize("name", [*REWARDS, "later_exits", "later_a_dict"])
def test_a_run_fails_with_the_name_of_the_reward(name, tiny_model, tmp_path, rewards):
    written = domains(f"bad_rewards_of_runs:{name}")
    with pytest.raises(RewardError, match=rf"math.*bad_rewards_of_runs:{name}"):
        train(parse_config(settings(tiny_model, tmp_path, domains=written)), "x")
    assert RunDirectory.open(tmp_path / "run", write=False).state["status"] == "failed"


def test_a_weight_that_makes_a_reward_too_large_is_told(tiny_model, tmp_path):
    written = domains({"name": "length", "weight": -1e17, "options": {"maximum": 3}})
    written["math"]["reward"] = [written["math"]["reward"], {"name": "length", "label": "b", "options": {"maximum": 3}}]
    train(parse_config(settings(tiny_model, tmp_path, domains=written)), "x")
    for unusable in (1e19, float("inf"), float("nan"), 10**400):
        written["math"]["reward"][0]["weight"] = unusable
        with pytest.raises(ConfigError, match="weight"):
            parse_config(settings(tiny_model, tmp_path, domains=written))


@pytest.mark.slow
@pytest.mark.parametrize("command", [["counterpoint"], [sys.executable, "-m", "counterpoint"]])
def test_both_commands_find_a_module_of_the_current_folder_and_end_with_its_failure(command, tiny_model, tmp_path):
    write_rewards(tmp_path)
    (tmp_path / "yaml.py").write_text("raise SystemExit('the wrong yaml')\n")  # must not stand for the installed one
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, tmp_path, domains=domains("bad_rewards_of_runs:exits"))))
    if command == ["counterpoint"]:
        command = [str(Path(sys.executable).parent / "counterpoint")]
    source = str(Path(counterpoint.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": source, "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [*command, "train", str(path)], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "reward 'bad_rewards_of_runs:exits' raised SystemExit: 0" in " ".join(result.stderr.split())
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [*command, "train", "../c.yaml", "--set", "run.name=b"],
        env=env,
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "reward 'bad_rewards_of_runs:exits' raised SystemExit: 0" in " ".join(result.stderr.split())
