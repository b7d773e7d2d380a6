"""A run killed with SIGKILL and resumed leaves the same metrics as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

CLOCKS = {"time", "step_time", "step_seconds", "seconds"}


def config(folder, model, name, **overrides):
    settings = {
        "model": str(model),
        "strategy": "mgs",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": {
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "evaluation": {"prompts": 4, "samples": 1, "every": 5, "greedy": False},
        "run": {"dir": str(folder), "name": name, "save_every": 3, "samples": 2, "device": "cpu"},
    } | overrides
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def command(*arguments):
    return [sys.executable, "-m", "counterpoint", *map(str, arguments)]


def environment():
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}


def run_to_the_end(*arguments):
    result = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def kill_at(step, *arguments):
    """Starts a run and kills it with SIGKILL a random moment after ``step`` was logged; returns the steps it logged."""
    metrics = next(a for a in arguments if str(a).endswith(".yaml"))
    folder = metrics.parent / metrics.stem
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= step:
            break
        time.sleep(0.002)
    time.sleep(random.Random(step).random() * 0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    return (folder / "metrics.jsonl").read_text().count("\n")


def lines(folder, name):
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_to_the_end("train", config(folder, tiny_model, "whole"))
    return folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 8])
def test_a_killed_run_resumes_with_the_same_numbers(step, whole, tiny_model, tmp_path):
    assert kill_at(step, "train", config(tmp_path, tiny_model, "killed")) < 12
    killed = tmp_path / "killed"
    run_to_the_end("train", "--resume", killed)

    for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "grams.jsonl"):
        assert lines(killed, name) == lines(whole, name), name
    last = "checkpoints/step-12/model.safetensors"
    assert (killed / last).read_bytes() == (whole / last).read_bytes()


@pytest.mark.slow
def test_a_killed_sequential_run_resumes_in_its_stage(tiny_model, tmp_path):
    overrides = {"strategy": {"name": "sequential", "order": ["code", "math"]}}
    whole = config(tmp_path, tiny_model, "whole", **overrides)
    killed = config(tmp_path, tiny_model, "killed", **overrides)
    run_to_the_end("train", whole)
    assert kill_at(8, "train", killed) < 12
    run_to_the_end("train", "--resume", tmp_path / "killed")

    assert lines(tmp_path / "killed", "metrics.jsonl") == lines(tmp_path / "whole", "metrics.jsonl")
    assert lines(tmp_path / "killed", "evals.jsonl") == lines(tmp_path / "whole", "evals.jsonl")
    state = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert [s["last_step"] for s in state["stages"]] == [6, 12]
    assert all((tmp_path / "killed" / s["checkpoint"] / "model.safetensors").exists() for s in state["stages"])


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tiny_model, tmp_path):
    path = config(tmp_path, tiny_model, "stopped")
    process = subprocess.Popen(
        command("train", path), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)

    assert process.returncode == 130, output
    assert f"counterpoint train --resume {tmp_path / 'stopped'}" in output.replace("\n", " ")
    assert "Traceback" not in output
    last = len(metrics.read_text().splitlines())
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{last}" / "model.safetensors").exists()
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    run_to_the_end("train", "--resume", tmp_path / "stopped")
    assert len(metrics.read_text().splitlines()) == 12
