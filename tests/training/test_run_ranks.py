"""Whole runs on two processes: one directory, one voice, and an end on all ranks together."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import yaml
from safetensors.torch import load_file

from commands import Command, counterpoint
from ranks_helper import run_ranks
from same_run import REWARDS_THAT_TEACH, assert_same_run, lines
from trainer_ranks import run_sharded

pytestmark = pytest.mark.slow


def settings_of(folder, model, name, **overrides):
    return {
        "model": str(model),
        "strategy": "mgs",
        "domains": REWARDS_THAT_TEACH,
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-3,
            "gradient_checkpointing": False,
        },
        "evaluation": {"prompts": 6, "samples": 1, "every": 4, "batch_size": 4},
        "run": {"dir": str(folder), "name": name, "save_every": 3, "keep": 3, "samples": 2, "device": "cpu"},
    } | overrides


def config(folder, model, name, **overrides):
    settings = settings_of(folder, model, name, **overrides)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def torchrun(*arguments):
    """``torchrun -m counterpoint ...`` in a process group of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "COLUMNS": "200",
    }
    return subprocess.Popen(
        [*launcher, "-m", "counterpoint", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=120):
    """The status and output of a launch, all of whose processes are gone."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


class Launch:
    """Two ranks as a launcher starts them, ended together when one fails, without the import of TRL in each."""

    def __init__(self, folder, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        self.ranks = [
            Command(
                *arguments,
                output=folder / f"rank-{rank}",
                environment=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]

    def poll(self):
        """None while all are running well."""
        return next((r.process.exitcode for r in self.ranks if r.process.exitcode is not None), None)

    def finish(self):
        """The first status that is not 0, and what all wrote."""
        deadline = time.monotonic() + 120
        while any(rank.process.is_alive() for rank in self.ranks) and time.monotonic() < deadline:
            if self.poll():
                for rank in self.ranks:
                    rank.process.terminate()
            time.sleep(0.02)
        ended = [rank.wait(1) for rank in self.ranks]
        return next((status for status, _ in ended if status), 0), "".join(output for _, output in ended)


def errors(output):
    """How many messages of ours there are beside the launcher's own report."""
    return len(re.findall(r"^Error: ", output, re.MULTILINE))


def wait_for_step(folder, step, process):
    path = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def before(folder):
    """The completions of the evaluation before training, in the order of domains."""
    rows = [line for line in lines(folder, "samples.jsonl") if line["when"] == "before"]
    assert len({row["completion"] for row in rows}) > 1
    return sorted(rows, key=lambda row: (row["domain"], row["prompt"]))


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    status, output = finish(torchrun("train", config(folder, tiny_model, "whole")))
    assert status == 0, output
    assert output.count("Report: ") == 1
    return folder / "whole"


def test_two_ranks_leave_one_run(whole):
    assert [line["step"] for line in lines(whole, "metrics.jsonl")] == list(range(1, 9))
    whens = [(line["when"], line["step"], line["domain"]) for line in lines(whole, "evals.jsonl")]
    assert len(whens) == len(set(whens)) == 2 * 3  # two domains before, after 4 steps and at the end
    assert json.loads((whole / "environment.json").read_text())["ranks"] == 2


def test_a_killed_rank_ends_the_run_which_resumes_with_the_same_numbers(whole, tiny_model, tmp_path):
    launch = Launch(tmp_path, "train", config(tmp_path, tiny_model, "killed"))
    wait_for_step(tmp_path / "killed", 4, launch)
    launch.ranks[1].process.kill()
    status, output = launch.finish()
    assert status != 0
    assert "Traceback (most recent call last)" not in output
    status, output = Launch(tmp_path, "train", "--resume", tmp_path / "killed").finish()
    assert status == 0, output
    assert_same_run(tmp_path / "killed", whole, tiny_model, last=8)


def test_a_stop_saves_on_all_ranks_at_the_same_step(tiny_model, tmp_path):
    launch = Launch(tmp_path, "train", config(tmp_path, tiny_model, "stopped"))
    wait_for_step(tmp_path / "stopped", 4, launch)
    launch.ranks[1].process.terminate()
    status, output = launch.finish()
    assert status != 0
    assert output.count("Saved. Continue with: counterpoint train --resume") == 1, output
    last = len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines())
    assert last < 8
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{last}" / "rng_state_1.pth").exists()
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["status"] == "interrupted"


def test_an_occupied_directory_is_told_once(whole, tmp_path):
    status, output = Launch(tmp_path, "train", whole.parent / "whole.yaml").finish()
    assert status != 0
    assert errors(output) == 1
    assert "already holds a run, which is never overwritten" in output


def test_another_number_of_ranks_cannot_resume(whole):
    refused = counterpoint("train", "--resume", whole)
    assert refused.returncode != 0
    assert "written by 2 processes, and this is one process" in " ".join(refused.stderr.split())


def test_a_reward_that_fails_on_one_rank_is_told_once(tiny_model, tmp_path):
    module = "import os\n\ndef picky(prompts, **_):\n    return [1 / int(os.environ['RANK'] == '0') for _ in prompts]\n"
    (tmp_path / "picky.py").write_text(module)
    domains = {"math": {"source": "pocket", "reward": "picky:picky"}, "code": {"source": "pocket"}}
    evaluation = {"prompts": 2, "samples": 1, "before": False}
    path = config(tmp_path, tiny_model, "broken", domains=domains, evaluation=evaluation)
    status, output = Launch(tmp_path, "train", path).finish()
    assert status != 0
    assert errors(output) == 1
    assert re.search(r"^Error: domain 'math': reward '.*picky' raised ZeroDivisionError", output, re.MULTILINE)


def test_a_run_on_fsdp2_saves_whole_models_and_resumes_with_the_same_numbers(whole, tiny_model, tmp_path):
    settings = settings_of(tmp_path, tiny_model, "sharded")
    settings["training"] |= {"torch_compile": True, "torch_compile_backend": "aot_eager"}  # whose names differ too
    settings["training"]["max_steps"], settings["run"]["save_every"] = 3, 2
    run_ranks(run_sharded, 2, settings)
    run = tmp_path / "sharded"
    assert before(run) == before(whole)
    names = [load_file(run / "checkpoints/step-3/model.safetensors").keys()]
    names += [load_file(whole / "checkpoints/step-8/model.safetensors").keys()]
    assert names[0] - {"lm_head.weight"} == names[1]  # tied to the embeddings, and written by FSDP2 once more

    stopped = tmp_path / "again" / "sharded"
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-3")
    again = settings | {"run": settings["run"] | {"dir": str(stopped.parent)}}
    run_ranks(run_sharded, 2, again)
    assert_same_run(stopped, run, tiny_model, last=3)


def test_a_watched_run_goes_through_its_stages_on_two_ranks(tiny_model, tmp_path):
    order = {"name": "sequential", "order": ["math", "code"]}
    settings = settings_of(tmp_path, tiny_model, "watched", strategy=order, recovery={"watch": True, "every": 1})
    settings["training"]["max_steps"] = 4
    path = tmp_path / "watched.yaml"
    path.write_text(yaml.safe_dump(settings))
    status, output = Launch(tmp_path, "train", path).finish()
    assert status == 0, output
    state = json.loads((tmp_path / "watched" / "run.json").read_text())
    assert (state["status"], state["watch"]["tests"]) == ("done", 2)
    assert state["stages"][0]["domains"] == ["math"]
