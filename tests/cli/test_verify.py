"""``counterpoint verify`` under torchrun and alone."""

import json
import os
import subprocess
import sys

import pytest

from commands import counterpoint
from counterpoint.verify import CASES, PLANTED, _cases
from ranks_helper import run_ranks


def test_two_ranks_print_one_table_and_one_sentence(tmp_path):
    path = tmp_path / "report.json"
    ranks = run_ranks(counterpoint, 2, "verify", "--only", "ddp", "--only", "Grams of", "--json", path)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert ranks[0].stdout.count("ddp: ") == 1
    assert "Exact on 2 ranks, cpu, float32: 1 of 1 cases held, 1 of 1 planted bugs were seen" in ranks[0].stdout
    assert ranks[1].stdout == ""
    data = json.loads(path.read_text())
    assert (data["exact"], data["ranks"]) == (True, 2)
    assert data["outcomes"][1]["errors"]["Grams"] > 0.1


def test_one_process_runs_what_it_can():
    result = counterpoint("verify", "--only", "buffers", "--only", "ddp", "--dtype", "float64")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Exact on 1 rank, cpu, float64: 1 of 1 cases held" in result.stdout
    assert "Not run, needs 2 ranks or more: ddp." in result.stdout


def test_what_is_not_exact_is_exit_status_1(monkeypatch):
    monkeypatch.setitem(_cases.EXACT[_cases.torch.float32], "weights", -1.0)
    result = counterpoint("verify", "--only", "buffers")
    assert result.returncode == 1
    assert "Not exact on 1 rank" in result.stdout


@pytest.mark.slow
def test_torchrun_runs_everything_on_two_ranks():
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launch, "-m", "counterpoint", "verify"], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "7 of 7 cases held, 4 of 4 planted bugs were seen" in result.stdout


def test_the_help_names_everything():
    text = " ".join(counterpoint("verify", "--help").stdout.replace("│", " ").split())
    assert "torchrun" in text
    assert all(name in text for name in (*CASES, *PLANTED))


def test_an_unknown_name_is_one_message():
    result = counterpoint("verify", "--only", "fsdp3")
    assert result.returncode == 1
    assert "No case or planted bug begins with 'fsdp3'" in result.stderr
    assert "Traceback" not in result.stderr
