"""From planted results to the table: pairing, forgetting, rigidity, cost, what is missing, and the files."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from counterpoint.errors import RunError
from counterpoint.results import of_plain
from counterpoint.study import StudyFolder, StudyResult, expected_power, plan_jobs, summarize
from study.studies import base, plant_run, plant_scores, study_of, write_lines

ROWS = {
    "base": "base",
    "mixed": "mixed",
    "seq": "sequential",
    "experts": "experts",
    "merged": {"kind": "merge", "of": "experts", "method": "ties"},
}
SEEDS = (0, 1, 2)


def mixed(seed):
    return {"math": 0.6 + 0.1 * seed, "code": 0.5}


def seq(seed):
    return {"math": mixed(seed)["math"] - 0.2 + 0.001 * seed, "code": 0.55}


@pytest.fixture
def planted(tmp_path):
    study = study_of(tmp_path, ROWS, seeds=3)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        if job.row == "base":
            plant_scores(folder, job, {"math": 0.3, "code": 0.1})
        elif job.row == "mixed":
            plant_run(folder, job, mixed(job.seed))
        elif job.row == "seq":
            plant_run(folder, job, seq(job.seed), own={"math": seq(job.seed)["math"] + 0.15 + 0.01 * job.seed})
        elif job.row == "experts":
            plant_run(folder, job, {"math": 0.95, "code": 0.9} if job.domain == "math" else {"math": 0.2, "code": 0.85})
        else:
            plant_scores(folder, job, {"math": 0.7, "code": 0.6}, seconds=2.0)
    return study, folder


def row_of(result, name):
    return next(row for row in result.rows if row.name == name)


def test_scores_are_means_over_seeds_and_experts_answer_their_own_domain(planted):
    result = summarize(*planted)
    assert [row.name for row in result.rows] == list(ROWS)
    row = row_of(result, "mixed")
    assert row.scores["math"].mean.value == pytest.approx(0.7)
    assert row.scores["math"].by_seed == pytest.approx((0.6, 0.7, 0.8))
    assert row.scores["average"].by_seed == pytest.approx((0.55, 0.6, 0.65))
    assert row.seeds_done == SEEDS
    assert row.seeds_planned == len(SEEDS)
    assert row.difference is None
    experts = row_of(result, "experts")
    assert (experts.scores["math"].mean.value, experts.scores["code"].mean.value) == pytest.approx((0.95, 0.85))


def test_the_base_keeps_its_interval_over_prompts_and_is_not_compared(planted):
    result = summarize(*planted)
    start = row_of(result, "base")
    assert (start.scores["math"].mean.low, start.scores["math"].mean.high) == pytest.approx((0.2, 0.35))
    assert start.scores["math"].by_seed == (0.3,)
    average = start.scores["average"].mean
    assert average.value == pytest.approx(0.2)
    assert average.low == pytest.approx(0.2 - math.hypot(0.1, 0.1) / 2)
    assert start.difference is None
    assert start.seeds_planned == 0
    assert "base" not in {contrast.row for contrast in result.contrasts}
    assert any(note.startswith("base: one model for all seeds") for note in result.notes)


def test_a_row_made_of_another_is_compared_with_it_too(planted):
    result = summarize(*planted)
    merged = row_of(result, "merged")
    assert merged.of == "experts"
    assert merged.difference_of["math"].value == pytest.approx(0.7 - 0.95)
    assert merged.difference["math"].value == pytest.approx(0.7 - 0.7)
    assert all(row.difference_of is None for row in result.rows if row.name != "merged")
    assert "| merged - experts | -0.250 " in result.to_markdown()


def test_few_rows_are_planned_unasked_and_the_rest_is_exploratory(planted):
    result = summarize(*planted)
    assert [(c.row, c.measure) for c in result.contrasts] == [(n, "average") for n in ("seq", "experts", "merged")]
    found = row_of(result, "seq").difference
    assert set(found) == {"math", "code", "average"}
    assert found["math"].value == pytest.approx(-0.199)
    assert found["math"].high - found["math"].low < 0.01  # seeds differ by 0.1, rows by 0.2 every time
    seq = result.contrasts[0]
    assert seq.verdict == "worse"
    assert seq.p_corrected == pytest.approx(3 * seq.p)
    assert (seq.power, seq.seeds_needed) == (1.0, 2)
    assert result.verdicts[0] == "seq - mixed, average: -0.075 [-0.076, -0.073], worse."
    exploratory = next(table for table in result.tables() if "Exploratory" in table.title)
    assert "not corrected" in exploratory.title
    words = " ".join(" ".join(row) for row in exploratory.text())
    assert "better" not in words
    assert "worse" not in words


def test_a_null_result_is_an_interval_with_the_seeds_that_it_takes(tmp_path):
    study = study_of(tmp_path, {"mixed": "mixed", "mgs": "mgs"}, seeds=4)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        shift = (0.03, -0.02, 0.04, -0.01)[job.seed] if job.row == "mgs" else 0.0
        plant_run(folder, job, {"math": 0.6 + shift, "code": 0.5})
    result = summarize(study, folder)
    (sentence,) = result.verdicts
    assert sentence == "mgs - mixed, average: +0.005 [-0.018, +0.028], not decided; 7 seeds would see 0.02."
    assert " no " not in sentence.lower()
    # code, which is the worst domain, never moves
    assert result.spreads == pytest.approx({"average": 0.01472, "math": 0.02944}, abs=1e-4)


def test_the_file_names_what_is_planned(tmp_path):
    contrasts = [{"row": "seq", "measure": "worst"}, {"row": "seq", "measure": "math"}]
    study = study_of(tmp_path, {"mixed": "mixed", "mgs": "mgs", "seq": "sequential"}, seeds=3, contrasts=contrasts)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        plant_run(folder, job, (seq if job.row == "seq" else mixed)(job.seed))
    result = summarize(study, folder)
    worst, math_ = result.contrasts
    # The lowest domain of each seed: 0.5 under mixed; math, at 0.4, and then code at 0.55 or math at 0.501 under seq.
    assert worst.change.value == pytest.approx((0.4 + 0.501 + 0.55 - 1.5) / 3)
    assert math_.change.value == pytest.approx(-0.199)
    assert math_.p_corrected == pytest.approx(2 * math_.p)
    assert row_of(result, "mgs").difference["average"].value == pytest.approx(0)


def test_many_rows_without_a_plan_decide_nothing_and_the_study_says_how_to_name_some(tmp_path):
    rows = {"mixed": "mixed"} | {f"row-{i}": "mgs" for i in range(4)}
    study = study_of(tmp_path, rows, seeds=2)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        plant_run(folder, job, mixed(job.seed))
    result = summarize(study, folder)
    assert result.contrasts == result.verdicts == ()
    assert result.notes[0].startswith("Nothing is decided: 4 rows are compared with mixed")
    assert "contrasts: [{row: row-0, measure: average}]" in result.notes[0]
    assert not any(word in result.to_markdown() for word in ("better", "worse"))


def test_a_contrast_named_after_the_first_run_is_said_to_be(tmp_path):
    rows = {"mixed": "mixed", "mgs": "mgs"}
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    first = study_of(tmp_path, rows, seeds=2)
    folder.keep_plan(first.contrasts)
    for job in plan_jobs(first, folder.runs):
        plant_run(folder, job, mixed(job.seed))
    assert not any("after the first run" in note for note in summarize(first, folder).notes)
    later = study_of(tmp_path, rows, seeds=2, contrasts=[{"row": "mgs"}, {"row": "mgs", "measure": "math"}])
    folder.keep_plan(later.contrasts)  # too late
    assert any(note.startswith("mgs (math): named after the first run") for note in summarize(later, folder).notes)
    (folder.path / "planned.json").write_text('{"contrasts": [3]}')
    with pytest.raises(RunError, match=r"planned\.json: cannot be read"):
        summarize(later, folder)


def test_given_checkpoints_are_rows(tmp_path):
    rows = {
        "mixed": "mixed",
        "theirs": {"kind": "given", "path": ["a", "b"]},
        "one": {"kind": "given", "path": "hub/model"},
    }
    study = study_of(tmp_path, rows)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    jobs = {job.id: job for job in plan_jobs(study, folder.runs)}
    assert [jobs[name].settings.path for name in ("theirs-seed-0", "theirs-seed-1", "one")] == ["a", "b", "hub/model"]
    for job in jobs.values():
        if job.trains:
            plant_run(folder, job, mixed(job.seed))
        else:
            plant_scores(folder, job, {"math": 0.8 + 0.01 * (job.seed or 0), "code": 0.5})
    result = summarize(study, folder)
    assert row_of(result, "theirs").scores["math"].by_seed == (0.8, 0.81)
    assert row_of(result, "theirs").difference["math"].value == pytest.approx(0.155)
    assert row_of(result, "one").difference is None
    assert [contrast.row for contrast in result.contrasts] == ["theirs"]
    assert row_of(result, "theirs").cost.seconds == 0


def test_the_files_of_a_study_hold_its_numbers(planted, tmp_path):
    result = summarize(*planted)
    result.write_all(tmp_path)
    lines = (tmp_path / "study.csv").read_text().splitlines()
    assert lines[0] == "row,kind,seed,measure,score"
    assert "mixed,train,1,math,0.7" in lines
    assert "base,base,,code,0.1" in lines
    frame = result.to_frame()
    assert frame[(frame.row == "mixed") & (frame.measure == "math")].score.mean() == pytest.approx(0.7)
    assert r"\begin{tabular}{lrrrl}" in (tmp_path / "study.tex").read_text()
    text = (tmp_path / "study.md").read_text()
    assert text.index("seq - mixed, average: ") < text.index("Held-out score")  # the verdicts come first
    again = of_plain(StudyResult, json.loads((tmp_path / "study.json").read_text()))
    assert again.contrasts == result.contrasts
    assert again.tables()[0].to_markdown() == result.tables()[0].to_markdown()


def test_the_terminal_shows_whole_names_and_numbers_at_80_columns(planted):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summarize(*planted))
    shown = console.export_text()
    assert re.search(r"│ experts │ +0\.900 │", shown)  # every seed is equal: no interval
    assert "-0.075 [-0.076, -0.073]" in shown
    assert "seq - mixed, average: -0.075 [-0.076, -0.073], worse." in shown


def test_forgetting_and_rigidity_are_by_seed(planted):
    row = row_of(summarize(*planted), "seq")
    assert set(row.forgetting) == {"math"}  # nothing follows the last stage
    assert row.forgetting["math"].value == pytest.approx(0.16)
    own = [seq(seed)["math"] + 0.15 + 0.01 * seed for seed in SEEDS]
    assert row.rigidity["math"].value == pytest.approx(0.95 - sum(own) / 3)
    assert row_of(summarize(*planted), "mixed").forgetting is None


def test_cost_counts_what_a_model_is_made_of(planted):
    result = summarize(*planted)
    cost = {row.name: row.cost for row in result.rows}
    assert (cost["mixed"].steps, cost["mixed"].tokens, cost["mixed"].seconds) == (6, 600, 3.0)
    assert (cost["seq"].steps, cost["seq"].tokens) == (6, 600)  # the count of tokens begins again with each stage
    assert cost["experts"].steps == 12  # planted with six each
    assert cost["merged"].steps == 12
    assert cost["merged"].seconds == cost["experts"].seconds + 2.0
    assert (cost["base"].steps, cost["base"].seconds) == (0, 0.0)


def test_failed_and_missing_runs_are_marked_and_the_rest_is_compared(planted):
    study, folder = planted
    record = folder.record("mixed-seed-1")
    folder.write_record(record.model_copy(update={"status": "failed", "reason": "no <memory> | left"}))
    (folder.path / "jobs" / "experts-code-seed-2.json").unlink()
    (folder.path / "jobs" / "merged-seed-0.json").unlink()
    result = summarize(study, folder)
    assert row_of(result, "mixed").seeds_done == (0, 2)
    assert [(f.seed, f.reason) for f in row_of(result, "mixed").failed] == [(1, "no <memory> | left")]
    assert row_of(result, "experts").seeds_done == (0, 1)
    assert row_of(result, "seq").difference["math"].value == pytest.approx(-0.2 + 0.001)
    assert row_of(result, "merged").difference is None or row_of(result, "merged").seeds_done == (1, 2)
    text = result.to_markdown()
    assert "* mixed, seed 1 failed: no &lt;memory> | left" in text
    assert "3 of 5 rows do not have all their seeds yet." in text


def test_nothing_done_is_an_empty_table(tmp_path):
    study = study_of(tmp_path, ROWS)
    result = summarize(study, StudyFolder(tmp_path / "studies" / "tiny"))
    assert all(row.scores == {} and row.cost is None for row in result.rows)
    assert "| mixed | - | - | - | 0 of 2 |" in result.to_markdown()
    assert result.verdicts[0] == "seq - mixed, average: not compared yet, two seeds of both are needed."


def test_one_seed_has_no_interval_and_json_has_no_nan(tmp_path):
    study = study_of(tmp_path, {"mixed": "mixed"}, seeds=1)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    plant_run(folder, plan_jobs(study, folder.runs)[0], mixed(0))
    result = summarize(study, folder)
    result.write(tmp_path / "study.json")
    text = (tmp_path / "study.json").read_text()
    assert "NaN" not in text
    data = json.loads(text)
    assert (data["schema"], data["version"]) == ("counterpoint.study", 2)
    assert data["rows"][0]["scores"]["math"] == {
        "mean": {"value": 0.6, "low": None, "high": None},
        "by_seed": [0.6],
    }
    assert data["settings"]["prompts_per_step"] == 2
    assert data["settings"]["completions_per_step"] == 8


def test_files_that_are_gone_are_named(planted):
    study, folder = planted
    (folder.run("merged-seed-1") / "scores.jsonl").unlink()
    with pytest.raises(RunError, match=r"scores\.jsonl: is gone\. Remove .*merged-seed-1\.json"):
        summarize(study, folder)


def test_an_incomplete_evaluation_is_named(planted):
    study, folder = planted
    path = folder.run("mixed-seed-0") / "evals.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(RunError, match="has no evaluation of code"):
        summarize(study, folder)


@pytest.mark.parametrize(("taken", "tokens"), [(0, 100 + 150 + 120), (1, 150 + 120)])
def test_tokens_begin_again_with_a_stage_unless_it_goes_on(tmp_path, taken, tokens):
    study = study_of(tmp_path, {"mixed": {"strategy": "sequential"}}, seeds=1)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    path = plant_run(folder, plan_jobs(study, folder.runs)[0], mixed(0))
    counts = [(0, 100), (1, 150), (2, 120)]  # the second stage's first step is larger than all of the first
    rows = [{"step": i, "stage": s, "num_tokens": n, "step_time": 1.0} for i, (s, n) in enumerate(counts)]
    write_lines(path / "metrics.jsonl", rows)
    state = json.loads((path / "run.json").read_text())
    state["stages"] = [dict(state["stages"][0], taken=taken * (i == 1)) for i in range(3)]
    (path / "run.json").write_text(json.dumps(state))
    assert summarize(study, folder).rows[0].cost.tokens == tokens


def test_the_power_is_stated_before_the_first_run(tmp_path):
    rows = {"base": "base", "mixed": "mixed", "mgs": "mgs"}
    study = study_of(tmp_path, rows, seeds=5)
    home = tmp_path / "studies" / "tiny"
    _, assumed = expected_power(study, home)
    assert assumed == (
        "mgs - mixed, average: 5 seeds see a difference of 0.02 with a chance of 0.40; 10 seeds see it with 0.8 "
        "(spread 0.020, assumed: no study here has measured it yet)."
    )
    other = study_of(tmp_path, rows, seeds=2, name="other", worth=0.05)
    folder = StudyFolder(tmp_path / "studies" / "other")
    for job in plan_jobs(other, folder.runs):
        if job.trains:
            plant_run(folder, job, {"math": 0.6 + 0.04 * job.seed * (job.row == "mgs"), "code": 0.5})
        else:
            plant_scores(folder, job, {"math": 0.3, "code": 0.2})
    summarize(other, folder).write_all(folder.path)
    _, measured = expected_power(study, home)
    assert measured.endswith(f"(spread 0.014, measured in {folder.path}).")
    on_math = study_of(tmp_path, rows, seeds=5, contrasts=[{"row": "mgs", "measure": "math"}])
    assert "(spread 0.028, measured" in list(expected_power(on_math, home))[1]  # each measure has its own
    longer = study_of(tmp_path, rows, seeds=5, config=base() | {"evaluation": {"prompts": 8}})
    assert "assumed" in list(expected_power(longer, home))[1]  # other prompts, another spread
    (folder.path / "study.json").write_text("{")
    assert "assumed" in list(expected_power(study, home))[1]


def test_starved_seeds_are_counted_and_compared(tmp_path):
    contrasts = [{"row": "mgs", "measure": "starved"}]
    study = study_of(tmp_path, {"mixed": "mixed", "mgs": "mgs"}, seeds=8, starved=0.5, contrasts=contrasts)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    for job in plan_jobs(study, folder.runs):
        lowest = 0.3 if job.row == "mixed" and job.seed != 3 else 0.5  # at the level is not below it
        plant_run(folder, job, {"math": lowest, "code": 0.9} if job.seed % 2 else {"math": 0.9, "code": lowest})
    result = summarize(study, folder)
    before, after = (row_of(result, name).worst for name in ("mixed", "mgs"))
    assert (before.starved, after.starved) == (7, 0)
    assert before.p_starved is None
    assert after.p_starved == pytest.approx(2 / 2**7)
    assert after.score.by_seed == (0.5,) * 8
    assert after.difference.value == pytest.approx(0.2 * 7 / 8)
    (planned,) = result.contrasts
    assert planned.verdict == "better"
    assert planned.change.value == pytest.approx(-7 / 8)
    assert "7 of 8" in result.to_markdown()
    assert not any("seeds would see" in sentence for sentence in result.verdicts)
    assert of_plain(StudyResult, json.loads(json.dumps(result.to_dict()))) == result


def test_without_a_level_nothing_is_starved(planted):
    result = summarize(*planted)
    assert row_of(result, "mixed").worst.starved is None
    assert "starved seeds" not in result.to_markdown()
