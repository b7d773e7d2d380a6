"""How a sequential run ends: every domain after its own stage and at the end, in the terminal and on the page."""

import io
import json

import pytest
from rich.console import Console

from counterpoint.cli.tables import ends_of_stages, print_run_table
from counterpoint.recovery.recovering.fallen import fallen_domains, final_changes
from counterpoint.report import build, page_of
from counterpoint.report._read import read_run
from counterpoint.runs import RunDirectory
from counterpoint.runs.own_stages import own_stages, verdict
from planted_runs import write_run

PLANTED = {"math": [0.3, 0.8, 0.5, 0.4], "code": [0.3, 0.3, 0.7, 0.7], "qa": [0.4, 0.4, 0.4, 0.9]}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(write_run(tmp_path / "run", PLANTED), write=False)


def test_it_says_what_recover_says(run):
    found, (fallen, rest) = ends_of_stages(run), fallen_domains(run)
    assert [one.domain for one in found if one.fell] == [one.domain for one in fallen] == ["math"]
    assert [one.domain for one in found if not one.fell] == [one.domain for one in rest] == ["code"]
    corrected = {one.domain: one.corrected for one in final_changes(run)[0]}
    for one in found:
        known = corrected[one.domain]
        assert (one.change.mean, one.change.low, one.change.high) == (known.value, known.low, known.high)


def test_the_terminal_shows_it_and_names_the_next_command(run):
    console = Console(file=io.StringIO(), width=120)
    print_run_table([run], console)
    shown = console.file.getvalue()
    (math,) = (line.replace("│", " ").split() for line in shown.splitlines() if "math" in line and "Fell" not in line)
    means = [float(word) for word in math if word[:2] == "0." and not word.endswith(("]", ","))]
    assert means == pytest.approx([0.3, 0.8, 0.4], abs=0.1)
    assert f"counterpoint recover {run.path}" in shown
    assert "Fell after its own stage: math -0." in shown


def test_the_head_of_the_page_shows_it(run):
    page, content = page_of(run.path), build([read_run(run.path)])
    assert [(row["domain"], row["fell"]) for row in content["evaluation"]["own"]["rows"]] == [
        ("math", True),
        ("code", False),
    ]
    assert page.index("counterpoint recover run") < page.index("Mean score over held-out prompts")


def test_without_a_later_stage_or_a_whole_evaluation_there_is_nothing_to_say(run):
    state, evals = run.state, run.lines("evals.jsonl")
    assert own_stages(state["stages"][:1], evals) == []
    assert own_stages(state["stages"], [line for line in evals if line["step"] < 30]) == []
    assert verdict([], "run") == ""
    calm = own_stages(state["stages"], [line | {"scores": [0.5] * 9} for line in evals])
    assert "No domain fell beyond noise" in verdict(calm, "run")
    assert "counterpoint diagnose run" in verdict(calm, "run")


def test_a_refresh_is_no_stage_of_the_domains_own(tmp_path):
    """A watched run: math falls while code is trained, and its refresh brings a part of it back."""
    path = write_run(tmp_path / "run", {"math": [0.3, 0.9, 0.4, 0.6], "code": [0.3, 0.3, 0.7, 0.7], "x": [0.5] * 4})
    state = json.loads((path / "run.json").read_text())
    state["stages"][2] |= {"kind": "refresh", "domains": ["math"]}
    (path / "run.json").write_text(json.dumps(state))
    run = RunDirectory.open(path, write=False)
    (math, code) = own_stages(run.state["stages"], run.lines("evals.jsonl"))
    assert (math.domain, math.own["step"], math.fell) == ("math", 10, True)
    assert (code.domain, code.own["step"], code.fell) == ("code", 20, False)
    ((fallen,), _) = fallen_domains(run)
    assert (fallen.domain, fallen.from_step, fallen.since) == ("math", 10, ("code",))
    assert (fallen.change.value, fallen.change.high) == (math.change.mean, math.change.high)
