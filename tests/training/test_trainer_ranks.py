"""Two processes train as one does: the same completions give the same weights, whatever the strategy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer_ranks
from ranks_helper import run_ranks
from trainer_ranks import CASES, train_cases, train_unaveraged

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

TOLERANCE = 1e-5


def launch(*arguments, world=2, timeout=300):
    """Runs a script on ``world`` CPU processes as ``accelerate launch`` starts them."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    options = ["--multi_gpu", "--num_processes", str(world), "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*accelerate, *options, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def launched(tiny_model, tmp_path_factory):
    """Every case on two processes that ``accelerate launch`` started: one result for each rank."""
    folder = tmp_path_factory.mktemp("launched")
    launch(Path(trainer_ranks.__file__), tiny_model, folder)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    return train_cases(str(tiny_model), tmp_path_factory.mktemp("alone"), list(CASES))


def largest_difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_weights_of_one(name, launched, alone):
    reference = alone[name]
    for rank in launched:
        assert rank[name]["ranks"] == 2
        assert largest_difference(rank[name]["weights"], reference["weights"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_both_processes_hold_the_same_bits(name, launched):
    first, second = (rank[name] for rank in launched)
    assert largest_difference(first["weights"], second["weights"]) == 0
    assert len(first["grams"]) == len(second["grams"]) >= 2
    for mine, theirs in zip(first["grams"], second["grams"], strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("name", CASES)
def test_grams_are_those_of_one_process(name, launched, alone):
    for mine, reference in zip(launched[0][name]["grams"], alone[name]["grams"], strict=True):
        assert np.allclose(mine, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize("name", CASES)
def test_logged_numbers_are_those_of_one_process(name, launched, alone):
    for mine, reference in zip(launched[0][name]["log"], alone[name]["log"], strict=True):
        assert mine == pytest.approx(reference, rel=1e-3, abs=1e-4)


def test_without_averaging_weights_drift_apart_so_the_comparison_can_fail(tiny_model, tmp_path, alone):
    first, second = (rank["mgs"] for rank in run_ranks(train_unaveraged, 2, str(tiny_model), tmp_path, ["mgs"]))
    reference = alone["mgs"]["weights"]
    assert largest_difference(first["weights"], reference) > 100 * TOLERANCE
    assert largest_difference(first["weights"], second["weights"]) > 100 * TOLERANCE
