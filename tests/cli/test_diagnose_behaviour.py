"""``counterpoint diagnose behaviour`` prints what it found, writes JSON, and refuses what it cannot use."""

import json

import pytest
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.errors import CounterpointError
from planted_runs import write_run

PLANTED = {"code": (0.2, 0.8, 0.4), "math": (0.4, 0.4, 0.9)}


def invoke(*arguments):
    return CliRunner().invoke(app, ["diagnose", "behaviour", *map(str, arguments)], env={"COLUMNS": "100"})


def test_the_table_and_the_sentences_say_what_was_planted(tmp_path):
    run = write_run(tmp_path / "run", PLANTED)
    result = invoke(run, "--json", tmp_path / "b.json")
    assert result.exit_code == 0
    row = next(line for line in result.output.splitlines() if line.startswith("│ code"))
    assert row.count("*") == 2  # it rose in its stage and fell in the next
    assert "forgetting: code rose in its own stage and then changed by -" in result.output
    assert "Rigidity of math cannot be told: no run trains math alone" in result.output
    assert max(map(len, result.output.splitlines()[:8])) < 100
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["schema"] == "counterpoint.diagnosis.behaviour"
    assert written["forgetting"][0]["verdict"] == "forgetting"


def test_a_run_alone_is_given_by_domain(tmp_path):
    run, alone = write_run(tmp_path / "run", PLANTED), write_run(tmp_path / "alone", {"math": (0.4, 0.9)}, seed=1)
    result = invoke(run, "--alone", f"math={alone}")
    assert "math after code gained" in result.output
    assert "within noise" in result.output


@pytest.mark.parametrize("value", ["math", "=x", "math="])
def test_alone_without_a_domain_or_a_run_is_refused(tmp_path, value):
    result = invoke(write_run(tmp_path / "run", PLANTED), "--alone", value)
    assert isinstance(result.exception, CounterpointError)
    assert "write DOMAIN=RUN" in str(result.exception)
