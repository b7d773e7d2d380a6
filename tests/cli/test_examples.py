"""Everything that is shipped to be run is run: the demo and the short examples, with a few steps each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import counterpoint
from counterpoint.config import load_config

ROOT = Path(__file__).parent.parent.parent
SHORT = sorted(
    p.name for p in (ROOT / "examples").glob("*.yaml") if not p.name.startswith("smollm2") and "-study" not in p.name
)
FEW = ["model.path=pocket", "training.max_steps=2", "evaluation.prompts=2", "evaluation.samples=1", "run.samples=1"]
FEW += ["training.max_completion_length=8", "evaluation.max_new_tokens=8"]

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(*arguments):
    done = counterpoint(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SHORT)
def test_short_examples_run_to_a_report(name, tmp_path):
    text = (ROOT / "examples" / name).read_text()
    values = [*FEW, f"run.dir={tmp_path}", "run.name=x", *(["strategy.steps=1"] if "sequential" in text else [])]
    overrides = [argument for value in values for argument in ("--set", value)]
    output = told("train", ROOT / "examples" / name, *overrides)
    run = tmp_path / "x"
    assert "Report:" in output
    assert (run / "report.html").stat().st_size < 6_000_000
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_the_demo_prints_its_table_and_a_report(tmp_path):
    output = told("demo", "--steps", 2, "--prompts", 2, "--seed", 3, "--dir", tmp_path / "demo")
    table = [line for line in output.splitlines() if line.startswith("│")]
    plain = ["before", "sequential: after short", "sequential: after long", "together: mixed"]
    hidden = ["before", "together: mixed", "together: mgs"]
    assert [row.split("│")[2].strip() for row in table] == plain + hidden
    assert all(row.count("[") == 2 for row in table)  # short and long, each with an interval
    assert "Nothing to recover" in output  # two steps lose nothing beyond noise
    reports = [Path(line.removeprefix("Report: ")) for line in output.splitlines() if line.startswith("Report: ")]
    assert reports == [tmp_path / "demo" / name / "report.html" for name in ("sequential", "mixed")]
    for report in reports:
        assert report.exists()
        assert load_config(report.with_name("config.yaml")).run.seed == 3


def test_a_checkpoint_can_be_evaluated_alone(tmp_path):
    config = ROOT / "examples" / "pocket-mgs.yaml"
    arguments = ["--set", "evaluation.prompts=2", "--set", "evaluation.samples=1", "-o", tmp_path / "scores.jsonl"]
    told("eval", config, *arguments)
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [score["domain"] for score in scores] == ["math", "code", "qa", "writing"]


def test_the_trl_script_checks_its_own_result(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    script = [sys.executable, str(ROOT / "examples" / "trl_script.py")]
    result = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "math: reward" in result.stdout
