"""A whole study of a tiny model through the command line: runs, table, resuming, failure, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from commands import counterpoint
from counterpoint.pocket.tokenizer import new_tokenizer
from study.studies import base, write_study

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
TESTS = str(Path(__file__).parents[1])
PYTHONPATH = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tokenizer = new_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_jobs(monkeypatch):
    """What the processes of a study's jobs find: quiet, and these tests' rewards."""
    for name, value in (QUIET | {"PYTHONPATH": os.pathsep.join([TESTS, *PYTHONPATH])}).items():
        monkeypatch.setenv(name, value)


def study(path, *arguments):
    done = counterpoint("study", path, "--dir", path.parent / "studies", *arguments)
    return done.returncode, done.stdout + done.stderr


def write(folder, model, rows, **changes):
    keys = base(model)
    keys["training"] |= {"max_steps": 2} | changes
    return write_study(folder, rows, config=keys, seeds=1, parallel=2)


ROWS = {
    "mixed": "mixed",
    "experts": "experts",
    "merged": {"kind": "merge", "of": "experts", "method": "task_arithmetic", "scale": [0.3, 1.0]},
    "theirs": {"kind": "given", "path": "pocket"},
    "broken": {"strategy": "mixed", "set": {"domains.math.reward": {"name": "study.studies:always_fails"}}},
}


def test_a_study_from_end_to_end(model, tmp_path):
    path = write(tmp_path, model, ROWS)
    status, output = study(path)
    assert status == 1, output
    assert "broken-seed-0 failed: " in output
    assert "this reward always fails" in output
    assert "Traceback" not in output
    folder = tmp_path / "studies" / "tiny"
    rows = {row["name"]: row for row in json.loads((folder / "study.json").read_text())["rows"]}
    assert [rows[name]["seeds_done"] for name in ROWS] == [[0], [0], [0], [], []]
    assert rows["theirs"]["scores"]["math"]["mean"]["low"] is not None
    assert rows["broken"]["failed"][0]["seed"] == 0
    assert rows["mixed"]["cost"]["steps"] == rows["experts"]["cost"]["steps"] == 2
    assert rows["merged"]["cost"]["seconds"] > rows["experts"]["cost"]["seconds"]
    assert (folder / "runs" / "merged-seed-0" / "checkpoint" / "model.safetensors").is_file()
    assert (folder / "study.html").stat().st_size < 6_000_000
    assert "| mixed |" in (folder / "study.md").read_text()
    assert {"study.csv", "study.tex"} <= {file.name for file in folder.iterdir()}
    assert not list(folder.rglob("optimizer.pt"))
    assert yaml.safe_load((folder / "study.yaml").read_text())["rows"]["merged"]["scale"] == [0.3, 1.0]

    times = {file.name: file.stat().st_mtime_ns for file in (folder / "jobs").glob("*-seed-0.json")}
    kept = write(tmp_path, model, {name: row for name, row in ROWS.items() if name != "broken"})
    status, output = study(kept)
    assert status == 0, output
    assert "5 done" in output
    assert {file.name: file.stat().st_mtime_ns for file in (folder / "jobs").glob("*-seed-0.json")} == times

    status, output = study(write(tmp_path, model, {"mixed": "mixed"}, learning_rate=0.5))
    assert status == 1
    assert "mixed-seed-0: training.learning_rate was 0.001 and is 0.5" in output


def test_problems_of_runs_are_listed_before_anything_runs(model, tmp_path):
    rows = {"mixed": "mixed", "few": {"strategy": "mixed", "set": {"domains.math.share": 100}}}
    status, output = study(write(tmp_path, model, rows))
    assert status == 1
    assert "rows.few: " in output
    assert not (tmp_path / "studies").exists()


def test_a_check_says_what_is_missing_and_what_the_seeds_can_see(model, tmp_path):
    rows = {"mixed": "mixed", "mgs": "mgs", "theirs": {"kind": "given", "path": str(model)}}
    status, output = study(write(tmp_path, model, rows), "--check")
    assert status == 0, output
    text = " ".join(output.split())
    assert "1 planned contrast decides" in text
    assert "mgs - mixed, average: 1 seeds see a difference of 0.02 with a chance of 0.00" in text
    assert "Missing: theirs, mixed-seed-0, mgs-seed-0" in text


def test_a_table_of_nothing_is_refused(model, tmp_path):
    status, output = study(write(tmp_path, model, {"mixed": "mixed"}), "--table")
    assert status == 1
    assert "there is no such study yet" in output
