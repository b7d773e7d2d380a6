"""Behaviour over a run: planted forgetting and rigidity are found, noise is noise, distinct n-grams are exact."""

import itertools
import json
import random

import pytest

from counterpoint.diagnosis import Behaviour, behaviour
from counterpoint.diagnosis._diversity import distinct_share, diversities
from counterpoint.diagnosis.behaviour import forgetting, stage_changes
from counterpoint.errors import CounterpointError, RunError
from counterpoint.results import of_plain
from counterpoint.runs.run import Run
from planted_runs import write_run

PLANTED = {
    # domain -> its true score before, and after every stage
    "code": (0.2, 0.8, 0.8, 0.5),
    "math": (0.4, 0.4, 0.9, 0.9),
    "qa": (0.3, 0.3, 0.3, 0.45),
}


def history_of(path):
    return Run.open(path)


def test_what_was_planted_is_found_and_the_rest_is_within_noise(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED))
    verdicts = {(change.domain, change.during[0]): change.verdict for change in found.changes}
    assert verdicts == {
        ("code", "code"): "rose", ("math", "code"): "within noise", ("qa", "code"): "within noise",
        ("code", "math"): "within noise", ("math", "math"): "rose", ("qa", "math"): "within noise",
        ("code", "qa"): "fell", ("math", "qa"): "within noise", ("qa", "qa"): "rose",
    }  # fmt: skip
    assert {(item.domain, item.since): item.verdict for item in found.forgetting} == {
        ("code", ("math",)): "within noise",
        ("code", ("math", "qa")): "forgetting",
        ("math", ("qa",)): "within noise",
    }
    fall = next(change for change in found.changes if change.verdict == "fell")
    assert fall.corrected.low < fall.change.low < -0.3 < fall.change.high < fall.corrected.high < 0


def test_a_fall_of_what_was_not_learned_is_no_forgetting(tmp_path):
    run = write_run(tmp_path / "run", {"code": (0.7, 0.7, 0.3), "math": (0.4, 0.4, 0.8)})
    assert [item.verdict for item in behaviour(run).forgetting] == ["fell"]


def test_without_any_change_hardly_a_run_is_flagged(tmp_path):
    """The chance of any flag in a table, of changes or of forgetting, stays at its nominal 5 %."""
    changed = forgotten = 0
    for seed in range(60):
        same = {name: (0.3 + 0.2 * i,) * 4 for i, name in enumerate(PLANTED)}
        history = history_of(write_run(tmp_path / str(seed), same, prompts=40, seed=seed))
        changes = stage_changes(history)
        changed += any(item.verdict != "within noise" for item in changes)
        forgotten += any(item.verdict != "within noise" for item in forgetting(history, changes))
    assert max(changed, forgotten) <= 6, (changed, forgotten)  # 60 runs at 5 %: 6 or fewer in 97 of 100


@pytest.mark.parametrize(
    ("alone", "expected"),
    [((0.3, 0.85), "rigidity"), ((0.3, 0.45), "within noise"), ((0.3, 0.31), "learned more")],
)
def test_rigidity_is_judged_against_the_domain_alone(tmp_path, alone, expected):
    run = write_run(tmp_path / "run", PLANTED)
    other = write_run(tmp_path / "alone", {"qa": alone}, seed=1)
    found = {item.domain: item for item in behaviour(run, {"qa": other}).rigidity}
    assert found["qa"].verdict == expected
    assert found["qa"].after == ("code", "math")
    assert found["math"].verdict.startswith("not measured: no run trains math alone")


@pytest.mark.parametrize(
    ("planted", "options", "reason"),
    [
        ({"qa": (0.3, 0.8)}, {"steps": 7}, "no evaluation of qa after 10 steps"),
        ({"qa": (0.8, 0.9)}, {}, "does not start from the same scores"),
        ({"qa": (0.3, 0.8)}, {"prompts": 60}, "scores 60 prompts and this one 120"),
        ({"math": (0.3, 0.8, 0.8), "qa": (0.3, 0.3, 0.8)}, {}, "does not train qa alone"),
    ],
)
def test_a_run_that_is_no_comparison_is_said_to_be_none(tmp_path, planted, options, reason):
    run = write_run(tmp_path / "run", PLANTED)
    other = write_run(tmp_path / "alone", planted, **{"seed": 1} | options)
    verdict = behaviour(run, {"qa": other}).rigidity[-1].verdict
    assert verdict.startswith("not measured: ")
    assert reason in verdict


def test_entropy_is_that_of_the_ends_of_a_stage(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED)).entropy
    assert [(item.domain, item.stage, item.steps) for item in found] == [
        ("code", 0, 10),
        ("math", 1, 10),
        ("qa", 2, 10),
    ]
    assert found[1].first.value == pytest.approx(1.15)  # steps 11 and 12 of 1.2 - 0.1 a step of the stage
    assert found[1].last.value == pytest.approx(0.35)
    assert found[1].first.low <= found[1].first.value <= found[1].first.high


def test_lengths_and_moments_are_those_of_the_evaluations(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED))
    assert [score.moment for score in found.scores[::3]] == ["before", "after code", "after math", "after qa"]
    assert found.scores[0].completion_length == 5.0


def test_a_run_without_stages_says_what_cannot_be_told(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    state = json.loads((path / "run.json").read_text())
    stage = {"domains": list(PLANTED), "first_step": 0, "last_step": 30, "checkpoint": "checkpoints/step-30"}
    (path / "run.json").write_text(json.dumps(state | {"stages": [stage]}))
    found = behaviour(path)
    assert found.notes[0].startswith("Forgetting and rigidity: not measured")
    assert found.forgetting == found.rigidity == ()
    assert len(found.changes) == 3


def test_unusable_runs_are_refused_with_a_remedy(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    with pytest.raises(CounterpointError, match=r"alone='sport': the run run has no such domain\. It has code, math"):
        behaviour(path, {"sport": path})
    lines = [json.loads(line) for line in (path / "evals.jsonl").read_text().splitlines()]
    (path / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    with pytest.raises(RunError, match="holds no evaluation of all of code, math, qa"):
        behaviour(path)
    del lines[0]["scores"]
    (path / "evals.jsonl").write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(RunError, match=r"evals.jsonl, line 1: cannot be read \(scores: Field required"):
        behaviour(path)


def test_a_run_that_is_still_going_is_told_as_far_as_it_is(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    state = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(state | {"stages": state["stages"][:1]}))
    lines = (path / "evals.jsonl").read_text().splitlines()[:7]  # one domain of the second stage's evaluation
    (path / "evals.jsonl").write_text("\n".join(lines) + "\n")
    found = behaviour(path)
    assert [change.during for change in found.changes] == [("code",)] * 3
    assert max(score.step for score in found.scores) == 10


def test_expected_distinct_things_against_all_subsets():
    things = "aaabbc"
    for drawn in range(1, 7):
        subsets = [len(set(chosen)) for chosen in itertools.combinations(things, drawn)]
        expected = sum(subsets) / len(subsets) / drawn
        assert distinct_share({"a": 3, "b": 2, "c": 1}, drawn) == pytest.approx(expected, abs=1e-12)


def test_longer_completions_of_the_same_source_are_no_less_diverse():
    stream = random.Random(0)
    short = {str(i): " ".join(stream.choices("abcdefgh", k=6)) for i in range(200)}
    long = {str(i): " ".join(stream.choices("abcdefgh", k=30)) for i in range(200)}
    found = {item.step: item for item in diversities({("math", 0): short, ("math", 1): long})}
    assert found[0].drawn == found[1].drawn == 1000
    assert found[0].distinct == pytest.approx(found[1].distinct, abs=0.003)


def test_a_collapse_of_diversity_shows():
    stream = random.Random(0)
    texts = {str(i): " ".join(stream.choices("abcdefgh", k=8)) for i in range(12)}
    collapsed = dict.fromkeys(texts, "a b a b a b a b")
    found = diversities({("math", 0): texts, ("math", 1): collapsed, ("math", 2): dict(texts)})
    bigrams = [item.distinct for item in found]
    assert bigrams[1] < 0.1 < bigrams[0] == bigrams[2]


def test_short_answers_are_cut_into_characters():
    texts = {"1+1=": "2", "17+25=": "42"}
    units = {item.unit for item in diversities({("math", 0): texts})}
    assert units == {"character"}


def test_it_is_written_and_read_as_it_is(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED))
    written = found.to_dict()
    assert written["schema"] == "counterpoint.behaviour"
    assert of_plain(Behaviour, json.loads(json.dumps(written, allow_nan=False))) == found


def test_a_collapse_in_a_domains_own_stage_is_said(tmp_path):
    found = behaviour(write_run(tmp_path / "run", {"math": (0.53, 0.18, 0.18), "code": (0.4, 0.4, 0.8)}))
    change = found.changes[0]
    assert (change.domain, change.role, change.verdict) == ("math", "own", "fell")
    (said,) = (text for text in found.verdicts() if text.startswith("math lost"))
    assert f"{-100 * change.change.value:.1f} points" in said
    assert "own stage" in said
    assert "learning_rate" in said, "what to do"


def test_a_fall_before_a_domains_own_stage_is_said(tmp_path):
    found = behaviour(write_run(tmp_path / "run", {"math": (0.3, 0.8, 0.8), "code": (0.6, 0.2, 0.7)}))
    assert [(c.domain, c.role) for c in found.changes if c.verdict == "fell"] == [("code", "not yet")]
    assert any(text.startswith("code lost") and "stage math" in text for text in found.verdicts())


def test_within_noise_has_its_interval_and_says_what_it_leaves_open(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED))
    (math,) = (item for item in found.forgetting if item.domain == "math")
    (said,) = (text for text in found.verdicts() if text.startswith("math changed"))
    assert f"[{100 * math.corrected.low:+.1f}, {100 * math.corrected.high:+.1f}]" in said
    assert f"does not exclude a loss of {-100 * math.corrected.low:.1f}" in said


def test_a_refresh_is_named_and_is_no_stage_of_its_own(tmp_path):
    path = write_run(tmp_path / "run", {"math": [0.3, 0.9, 0.4, 0.6], "code": [0.3, 0.3, 0.7, 0.7], "x": [0.5] * 4})
    state = json.loads((path / "run.json").read_text())
    state["stages"][2] |= {"kind": "refresh", "domains": ["math"]}
    (path / "run.json").write_text(json.dumps(state))
    found = behaviour(path)
    assert found.scores[-1].moment == "after a refresh of math"
    assert found.tables()[0].columns == ("domain", "while math", "while code", "refresh of math")
    assert [item.domain for item in found.rigidity] == ["code"], "a refresh learns nothing anew"


def test_the_table_holds_every_change_and_names_what_is_beyond_noise(tmp_path):
    found = behaviour(write_run(tmp_path / "run", PLANTED))
    table = found.tables()[0]
    assert [row[0] for row in table.rows] == list(PLANTED)
    fall = found.change("code", 20)
    assert table.rows[0][3].value == pytest.approx(100 * fall.change.value)
    assert "code fell in qa" in table.note
    assert list(found.to_frame()["domain"]) == list(PLANTED)


def test_rigidity_is_said_with_its_intervals(tmp_path):
    alone = write_run(tmp_path / "alone", {"qa": (0.3, 0.85)}, seed=1)
    found = behaviour(write_run(tmp_path / "run", PLANTED), {"qa": alone})
    (said,) = (text for text in found.verdicts() if text.startswith("qa after code and math"))
    assert said.endswith("rigidity.")
    assert any("Rigidity of math: not measured" in text for text in found.notes)
