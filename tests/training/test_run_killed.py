"""A run killed with SIGKILL and resumed leaves the same metrics as one that was not."""

import json
import os
import random
import signal
import time

import pytest
import yaml

from commands import Command
from same_run import REWARDS_THAT_TEACH, TOLERANCE, assert_close, assert_same_run, distance, lines

STEPS = 8


def config(folder, model, name, **overrides):
    settings = {
        "model": str(model),
        "strategy": "mgs",
        "domains": REWARDS_THAT_TEACH,
        "training": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "evaluation": {"prompts": 4, "samples": 1, "every": 4, "greedy": False},
        "run": {"dir": str(folder), "name": name, "save_every": 3, "samples": 2, "device": "cpu"},
    } | overrides
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(folder, *arguments):
    return Command(*arguments, output=folder / "output")


def run_to_the_end(folder, *arguments):
    status, output = start(folder, *arguments).wait()
    assert status == 0, output


def wait_for_step(step, metrics, command):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and command.process.is_alive():
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            break
        time.sleep(0.002)


def kill_at(step, path):
    """Starts a run and kills it with SIGKILL a random moment after ``step`` was logged; returns the steps it logged."""
    metrics = path.parent / path.stem / "metrics.jsonl"
    command = start(path.parent, "train", path)
    wait_for_step(step, metrics, command)
    time.sleep(random.Random(step).random() * 0.1)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait()[0] == -signal.SIGKILL, "the run ended before it could be killed"
    return metrics.read_text().count("\n")


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    run_to_the_end(folder, "train", config(folder, tiny_model, "whole"))
    return folder / "whole"


@pytest.mark.slow
def test_one_step_shows_far_above_what_is_called_the_same(whole, tiny_model):
    steps = [whole / f"checkpoints/step-{step}" for step in (6, 8)]
    assert distance(*steps) > 50 * TOLERANCE * distance(steps[1], tiny_model)
    with pytest.raises(AssertionError):
        assert_close(lines(whole, "metrics.jsonl")[:-1], lines(whole, "metrics.jsonl")[1:], "metrics of another step")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_run_resumes_with_the_same_numbers(step, whole, tiny_model, tmp_path):
    assert kill_at(step, config(tmp_path, tiny_model, "killed")) < STEPS
    killed = tmp_path / "killed"
    run_to_the_end(tmp_path, "train", "--resume", killed)

    assert_same_run(killed, whole, tiny_model, last=STEPS)


@pytest.mark.slow
def test_a_killed_sequential_run_resumes_in_its_stage(tiny_model, tmp_path):
    overrides = {"strategy": {"name": "sequential", "order": ["code", "math"]}}
    whole = config(tmp_path, tiny_model, "whole", **overrides)
    killed = config(tmp_path, tiny_model, "killed", **overrides)
    run_to_the_end(tmp_path, "train", whole)
    assert kill_at(5, killed) < STEPS
    run_to_the_end(tmp_path, "train", "--resume", tmp_path / "killed")

    for name in ("metrics.jsonl", "evals.jsonl"):
        assert_close(lines(tmp_path / "killed", name), lines(tmp_path / "whole", name), name)
    state = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert [s["last_step"] for s in state["stages"]] == [4, 8]
    assert all((tmp_path / "killed" / s["checkpoint"] / "model.safetensors").exists() for s in state["stages"])


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_resume(tiny_model, tmp_path):
    path = config(tmp_path, tiny_model, "stopped")
    command, metrics = start(tmp_path, "train", path), tmp_path / "stopped" / "metrics.jsonl"
    wait_for_step(3, metrics, command)
    os.kill(command.pid, signal.SIGINT)
    status, output = command.wait()

    assert status == 130, output
    assert f"counterpoint train --resume {tmp_path / 'stopped'}" in output.replace("\n", " ")
    assert "Traceback" not in output
    last = len(metrics.read_text().splitlines())
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{last}" / "model.safetensors").exists()
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"
    run_to_the_end(tmp_path, "train", "--resume", tmp_path / "stopped")
    assert len(metrics.read_text().splitlines()) == STEPS
