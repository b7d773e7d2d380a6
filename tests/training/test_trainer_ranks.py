"""Several processes train as one does: the same completions give the same weights, whatever the strategy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trainer_ranks
from ranks_helper import run_ranks
from trainer_ranks import (
    HYBRID_CASES,
    LAUNCHED_CASES,
    SHARDED_CASES,
    evaluate_apart,
    generate_together,
    odd_cases,
    train_cases,
    train_hybrid,
    train_sharded,
    train_unaveraged,
)

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


class Alone(dict):
    """The cases on one process, each trained when it is first asked for."""

    def __init__(self, *places):
        self._places = places

    def __missing__(self, name):
        self |= train_cases(*self._places, [name])
        return self[name]


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    return Alone(str(tiny_model), tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def sharded(tiny_model, tmp_path_factory):
    """Some of them on FSDP2, which accelerate is made to set up on gloo ranks."""
    return run_ranks(train_sharded, 2, str(tiny_model), tmp_path_factory.mktemp("sharded"), SHARDED_CASES)


@pytest.fixture(scope="module")
def hybrid(tiny_model, tmp_path_factory):
    """A few on HSDP, four gloo ranks."""
    return run_ranks(train_hybrid, 4, str(tiny_model), tmp_path_factory.mktemp("hybrid"), HYBRID_CASES)


BACK_ENDS = [
    pytest.param(back_end, name, marks=[] if back_end == "sharded" else [pytest.mark.slow])
    for back_end, names in (("launched", LAUNCHED_CASES), ("sharded", SHARDED_CASES), ("hybrid", HYBRID_CASES))
    for name in names
]
MESHES = {"launched": [], "sharded": [(2,)], "hybrid": [(2, 2)]}


@pytest.fixture
def ranks(request, back_end, name):
    """What all ranks of a back end give for one case."""
    return [rank[name] for rank in request.getfixturevalue(back_end)]


def largest_difference(ours, theirs):
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


@pytest.mark.parametrize(("back_end", "name"), BACK_ENDS)
def test_several_processes_train_the_weights_of_one(ranks, back_end, name, alone):
    for rank in ranks:
        assert rank["ranks"] == len(ranks) == (4 if back_end == "hybrid" else 2)
        assert rank["mesh"] == MESHES[back_end]
        assert rank["sharded"] == (back_end != "launched")
        assert largest_difference(rank["weights"], alone[name]["weights"]) < TOLERANCE


@pytest.mark.parametrize(("back_end", "name"), BACK_ENDS)
def test_all_processes_hold_the_same_bits(ranks):
    first, *others = ranks
    for other in others:
        assert largest_difference(first["weights"], other["weights"]) == 0
        assert len(first["grams"]) == len(other["grams"]) >= 2
        for mine, theirs in zip(first["grams"], other["grams"], strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize(("back_end", "name"), BACK_ENDS)
def test_grams_are_those_of_one_process(ranks, name, alone):
    for mine, reference in zip(ranks[0]["grams"], alone[name]["grams"], strict=True):
        assert np.allclose(mine, reference, rtol=1e-3, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize(("back_end", "name"), BACK_ENDS)
def test_logged_numbers_are_those_of_one_process(ranks, name, alone):
    for mine, reference in zip(ranks[0]["log"], alone[name]["log"], strict=True):
        assert mine == pytest.approx(reference, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("name", "per_step"), [("mgs", 2), ("mgs, 4 domains, clipped", 4), ("mgs-significant", 4)])
def test_each_domain_is_reduced_once_a_step_and_once_a_micro_batch_for_halves(name, per_step, sharded):
    assert [rank[name]["collected"] for rank in sharded] == [4 * per_step] * 2


def test_without_averaging_weights_drift_apart_so_the_comparison_can_fail(tiny_model, tmp_path, alone):
    first, second = (rank["mgs"] for rank in run_ranks(train_unaveraged, 2, str(tiny_model), tmp_path, ["mgs"]))
    reference = alone["mgs"]["weights"]
    assert largest_difference(first["weights"], reference) > 100 * TOLERANCE
    assert largest_difference(first["weights"], second["weights"]) > 100 * TOLERANCE


@pytest.mark.slow
def test_ranks_with_rows_of_different_domains_make_the_same_calls(tiny_model, tmp_path):
    first, second = run_ranks(evaluate_apart, 2, str(tiny_model), tmp_path)
    for key in ("eval_completion_length/math", "eval_completion_length/code", "eval_entropy", "eval_kl"):
        assert first[key] == second[key]
    assert first["eval_completion_length/math"] <= 3 < first["eval_completion_length/code"]


@pytest.fixture(scope="module")
def odd(tiny_model, tmp_path_factory):
    return run_ranks(odd_cases, 2, str(tiny_model), tmp_path_factory.mktemp("odd"))


def test_a_loss_that_is_no_number_on_one_rank_stops_both(odd):
    (_, first), (_, second) = odd
    assert first == second
    assert first.startswith("Step 2: the loss is nan")


def test_ranks_replace_silent_prompts_together(odd):
    (first, metrics), _ = odd[0]
    (second, same), _ = odd[1]
    assert metrics == same
    assert metrics[0][0] > 0
    assert max(metrics[0][1:]) > 0
    assert [row[0] for row in first] == [row[0] for row in second]  # shares as ever
    assert [row[3] for row in first] == [row[3] for row in second]  # tokens of the whole step
    assert len({row[2] for row in first + second}) > 4
    for domain, signal, prompt, _ in first + second:
        assert signal, prompt
        assert trainer_ranks.hash_of(prompt) % 3 == 0
        assert prompt in {row["prompt"] for row in list(trainer_ranks.MORE_DATA.values())[domain]}


@pytest.mark.parametrize("batch_size", [4, 10])
def test_two_ranks_evaluate_as_one_does(batch_size):
    alone = generate_together(batch_size)
    assert run_ranks(generate_together, 2, batch_size) == [alone, alone]
