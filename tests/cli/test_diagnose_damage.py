"""``counterpoint diagnose damage``: table, JSON, refusals, and what is left when memory ends."""

import json

import pytest
import torch
from typer.testing import CliRunner

import counterpoint.diagnosis.damage_analysis.stages as stages
from counterpoint.cli.app import app
from counterpoint.errors import CounterpointError
from damage_helpers import make_checkpoints, make_completions, make_config

SMALL = ["--lanczos", "2", "--top", "2", "--draws", "1", "--scales", "0.5,1", "--fraction", "0.5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage")
    base, after = make_checkpoints(folder)
    return [
        *("diagnose", "damage", str(make_config(folder, base)), "--base", str(base), "--after", str(after)),
        *("--domain", "math", "--completions", str(make_completions(folder))),
    ]


def run(arguments):
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)


def test_a_table_for_people_and_json_for_programs(place, tmp_path):
    file = tmp_path / "damage.json"
    result = run([*place, *SMALL, "--other", "qa", "--json", str(file)])
    assert result.exit_code == 0, result.output
    for words in ("first order g.d", "½ d'Hd", "Fisher", "measured", "random edit", "By module", "shared neurons"):
        assert words in result.output
    assert "Along the edit" in result.output
    assert "eigen-directions" in result.output
    assert "predict it here" in result.output
    assert max(map(len, result.output.splitlines()[:20])) < 100
    written = json.loads(file.read_text())
    assert (written["schema"], written["version"]) == ("counterpoint.diagnosis.damage", 1)
    assert [point["scale"] for point in written["range"]["points"]] == [0.5, 1.0]
    assert written["modules"][0]["own_block"]["value"] is not None


def test_what_was_measured_is_printed_and_written_when_memory_ends(place, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stages, "block_forms", fails)
    file = tmp_path / "damage.json"
    result = run([*place, *SMALL, "--json", str(file)])
    assert result.exit_code == 1
    assert "Lower --batch-size" in result.output
    written = json.loads(file.read_text())
    assert written["stopped"].startswith("Memory did not suffice")
    assert written["measured"] is not None
    assert written["spectrum"] is None


def test_refusals_name_the_option(place):
    result = run([*place, "--scales", "a,b"])
    assert isinstance(result.exception, CounterpointError)
    assert "--scales a,b: write numbers with commas" in str(result.exception)
    result = run([*place, "--lanczos", "-1"])
    assert "--lanczos must not be negative" in str(result.exception)


def test_help_teaches_with_an_example():
    result = run(["diagnose", "damage", "--help"])
    assert "counterpoint diagnose damage --base" in result.output
    assert "--baseline" in result.output
