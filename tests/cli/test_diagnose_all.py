"""``counterpoint diagnose all`` shows its parts, the pairs, and by its exit status whether all could be measured."""

import pytest
from typer.testing import CliRunner

from counterpoint import diagnosis as package
from counterpoint.cli.app import app
from counterpoint.diagnosis import Estimate
from counterpoint.diagnosis.whole_run.parts import PartDone
from counterpoint.diagnosis.whole_run.results import Pair, PairOverlap, Summary
from counterpoint.errors import CounterpointError
from planted_runs import write_run

PLANTED = {"code": (0.2, 0.8, 0.4), "math": (0.4, 0.4, 0.9)}


def pair(**fields):
    overlap = PairOverlap(0.1, 0.3, 0.05, 0.001)
    known = {
        "earlier": "code", "later": "math", "together": False, "first_step": 10, "last_step": 20,
        "change": Estimate(-0.4, -0.5, -0.3), "corrected": None, "verdict": "fell", "outcome": "code fell [loss].",
        "mechanism": "Gradients are within noise.", "damage": None, "conflict": None, "edits": overlap, "routes": None,
    }  # fmt: skip
    return Pair(**known | fields)


def summary(*parts):
    return Summary("run", {}, 12.0, parts, (pair(),), (), (), ("code changed.",), ())


@pytest.fixture
def diagnosed(tmp_path, monkeypatch):
    """Invokes the command on a run whose diagnosis is given."""
    run = write_run(tmp_path / "run", PLANTED)
    calls = []

    def invoke(found, *arguments):
        def diagnose(path, options, *, alone, on_progress, on_part):
            calls.append((path, options, alone))
            for part in found.parts:
                on_part(part)
            return found

        monkeypatch.setattr(package, "diagnose", diagnose)
        result = CliRunner().invoke(app, ["diagnose", "all", str(run), *map(str, arguments)], env={"COLUMNS": "98"})
        return result, calls[-1:] and calls[-1]

    return invoke


def test_everything_done_is_success(diagnosed, tmp_path):
    part = PartDone("edits", "edits", "edits.json", "done", 1.5, {})
    result, (_, options, alone) = diagnosed(
        summary(part), "--quick", "--prompts", 32, "--alone", "math=x", "--json", tmp_path / "s.json"
    )
    assert result.exit_code == 0, result.output
    assert "edits: done in 1.5 s" in result.output
    assert "- code fell [loss]." in result.output
    row = next(line for line in result.output.splitlines() if "math → code" in line)
    assert "-40.0*" in row
    assert "0.30 (0.05)" in row
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in result.output.replace("\n", "")
    assert (tmp_path / "s.json").is_file()
    assert (options.effort, options.prompts, options.samples) == ("quick", 32, 4)
    assert str(alone["math"]) == "x"


def test_a_part_that_failed_shows_its_reason_and_in_the_exit_status(diagnosed):
    part = PartDone("damage-code-math", "damage", "damage-code-math.json", "failed", 0.1, {}, "Too few prompts.")
    result, _ = diagnosed(summary(part))
    assert result.exit_code == 3
    assert "damage-code-math: cannot be told: Too few prompts." in result.output


def test_two_efforts_at_once_are_refused(diagnosed):
    result, _ = diagnosed(summary(), "--quick", "--thorough")
    assert isinstance(result.exception, CounterpointError)
    assert "exclude each other" in str(result.exception)
