"""``counterpoint diagnose damage``: tables, JSON, and what is left when memory ends."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import counterpoint.diagnosis
from counterpoint.cli.app import app
from damage_helpers import make_checkpoints, make_completions, make_config


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    base, after = make_checkpoints(folder)
    return [
        *("diagnose", "damage", str(make_config(folder, base)), "--before", str(base), "--after", str(after)),
        *("--domain", "math", "--completions", str(make_completions(folder))),
    ]


def run(arguments):
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments)


def test_tables_for_people_and_json_for_programs(place, tmp_path):
    file = tmp_path / "damage.json"
    result = run([*place, "--other", "qa", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "The quadratic approximation predicts" in " ".join(result.output.split())
    assert "…" not in result.output, "nothing is cut in 80 columns"
    assert json.loads(file.read_text())["schema"] == "counterpoint.damage"


def test_what_was_measured_is_printed_and_written_when_memory_ends(place, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert counterpoint.diagnosis
    monkeypatch.setattr(sys.modules["counterpoint.diagnosis.damage"], "subspace_of", fails)
    file = tmp_path / "damage.json"
    result = run([*place, "--lanczos", "2", "--json", str(file)])
    assert result.exit_code == 1
    assert "Lower batch_size" in result.output
    written = json.loads(file.read_text())
    assert written["stopped"].startswith("Memory did not suffice")
    assert written["measured"] is not None
    assert written["subspace"] is None
