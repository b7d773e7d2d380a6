"""How a sequential run ends: every domain after its own stage and at the end, in the terminal and on the page."""

import io
import json

import pytest
from rich.console import Console

from counterpoint.cli.train import run_table
from counterpoint.recovery.recover import fallen_domains
from counterpoint.report import build, write_report
from counterpoint.report.read import read_run
from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run
from planted_runs import write_run

PLANTED = {"math": [0.3, 0.8, 0.5, 0.4], "code": [0.3, 0.3, 0.7, 0.7], "qa": [0.4, 0.4, 0.4, 0.9]}


@pytest.fixture
def run(tmp_path):
    return RunDirectory.open(write_run(tmp_path / "run", PLANTED), write=False)


def test_it_says_what_recover_says(run):
    found, (fallen, rest) = Run.open(run.path).at_the_end, fallen_domains(Run.open(run.path))
    assert [one.domain for one in found if one.fell] == [one.domain for one in fallen] == ["math"]
    assert [one.domain for one in found if not one.fell] == [one.domain for one in rest] == ["code"]
    assert fallen[0].change == found[0].corrected


def test_the_terminal_shows_it_and_names_the_next_command(run):
    console = Console(file=io.StringIO(), width=120)
    console.print(run_table(run))
    shown = console.file.getvalue()
    (math,) = (line.replace("│", " ").split() for line in shown.splitlines() if "math" in line and "Fell" not in line)
    means = [float(word) for word in math if word[:2] == "0." and not word.endswith(("]", ","))]
    assert means == pytest.approx([0.3, 0.8, 0.4], abs=0.1)
    assert f"counterpoint recover {run.path}" in Run.open(run.path).verdict()
    assert "Fell after its own stage: math -0." in Run.open(run.path).verdict()


def test_the_page_opens_with_it(run):
    page, content = write_report(run.path).read_text(), build([read_run(run.path)])["evaluation"]
    assert [(row["domain"], row["fell"]) for row in content["own"]["rows"]] == [("math", True), ("code", False)]
    (_, worst, _) = content["head"]["numbers"]
    assert worst["label"] == "Largest change since: math"
    assert worst["change"] == Run.open(run.path).at_the_end[0].corrected
    head = page[page.index("<header>") : page.index("</header>")]
    assert f"counterpoint recover {run.path}" in head
    assert "1 of 2" in head


def test_without_a_later_stage_or_a_whole_evaluation_there_is_nothing_to_say(run):
    state, evals = run.state, run.lines("evals.jsonl")
    single = Run(run.path, state | {"stages": state["stages"][:1]}, lambda name: evals)
    assert (single.at_the_end, single.verdict()) == ((), "")
    assert Run(run.path, state, lambda name: [line for line in evals if line["step"] < 30]).at_the_end == ()
    calm = Run(run.path, state, lambda name: [line | {"scores": [0.5] * 9} for line in evals])
    assert not any(one.fell for one in calm.at_the_end)
    assert f"counterpoint diagnose {run.path}" in calm.verdict()


def test_a_refresh_is_no_stage_of_the_domains_own(tmp_path):
    """A watched run: math falls while code is trained, and its refresh brings a part of it back."""
    path = write_run(tmp_path / "run", {"math": [0.3, 0.9, 0.4, 0.6], "code": [0.3, 0.3, 0.7, 0.7], "x": [0.5] * 4})
    state = json.loads((path / "run.json").read_text())
    state["stages"][2] |= {"kind": "refresh", "domains": ["math"]}
    (path / "run.json").write_text(json.dumps(state))
    math, code = Run.open(path).at_the_end
    assert (math.domain, math.first_step, math.fell) == ("math", 10, True)
    assert (code.domain, code.first_step, code.fell) == ("code", 20, False)
    ((fallen,), _) = fallen_domains(Run.open(path))
    assert (fallen.domain, fallen.from_step, fallen.since) == ("math", 10, ("code",))
    assert fallen.change == math.corrected
