"""From planted results to the table: pairing, forgetting, rigidity, cost, what is missing, and the files."""

import json
import math

import pytest

from counterpoint.errors import RunError
from counterpoint.study import StudyFolder, summarize
from counterpoint.study.folder import JobRecord
from counterpoint.study.jobs import plan_jobs
from counterpoint.study.markdown import markdown
from counterpoint.study.results import write_result
from study.studies import plant_run, plant_scores, study_of, write_lines

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
    assert row.scores["math"].mean == pytest.approx(0.7)
    assert row.scores["math"].by_seed == pytest.approx((0.6, 0.7, 0.8))
    assert row.average.by_seed == pytest.approx((0.55, 0.6, 0.65))
    assert row.seeds_done == SEEDS
    assert row.seeds_planned == len(SEEDS)
    assert row.difference is None
    experts = row_of(result, "experts")
    assert (experts.scores["math"].mean, experts.scores["code"].mean) == pytest.approx((0.95, 0.85))


def test_the_base_keeps_its_interval_over_prompts(planted):
    base = row_of(summarize(*planted), "base")
    assert (base.scores["math"].low, base.scores["math"].high) == pytest.approx((0.2, 0.35))
    assert base.scores["math"].by_seed == (0.3,)
    assert base.average.mean == pytest.approx(0.2)
    assert base.average.low == pytest.approx(0.2 - math.hypot(0.1, 0.1) / 2)
    assert base.difference["math"].mean == pytest.approx(-0.4)


def test_a_row_made_of_another_is_compared_with_it_too(planted):
    result = summarize(*planted)
    merged = row_of(result, "merged")
    assert merged.of == "experts"
    assert merged.difference_of["math"].mean == pytest.approx(0.7 - 0.95)
    assert merged.difference["math"].mean == pytest.approx(0.7 - 0.7)
    assert merged.difference_of["code"].p_corrected >= merged.difference_of["code"].p
    assert all(row.difference_of is None for row in result.rows if row.name != "merged")
    assert "| merged - experts | math | -0.250 " in markdown(result)


def test_differences_are_paired_by_seed_and_corrected_for_all(planted):
    result = summarize(*planted)
    found = row_of(result, "seq").difference
    assert found["math"].mean == pytest.approx(-0.199)
    assert found["math"].high - found["math"].low < 0.01  # seeds differ by 0.1, rows by 0.2 every time
    assert found["math"].verdict == "worse"
    assert found["math"].p_sign_flip == 0.25
    assert set(found) == {"math", "code", "average"}
    compared = [d for row in result.rows for d in (row.difference or {}).values()]
    assert len(compared) == 12
    assert found["math"].p_corrected >= found["math"].p
    assert max(d.p_corrected for d in compared) <= 1.0


def test_forgetting_and_rigidity_are_by_seed(planted):
    row = row_of(summarize(*planted), "seq")
    assert set(row.forgetting) == {"math"}  # nothing follows the last stage
    assert row.forgetting["math"].mean == pytest.approx(0.16)
    own = [seq(seed)["math"] + 0.15 + 0.01 * seed for seed in SEEDS]
    assert row.rigidity["math"].mean == pytest.approx(0.95 - sum(own) / 3)
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
    folder.write_record(JobRecord(record.id, "mixed", 1, "", "failed", 3.0, "no <memory> | left", record.settings))
    (folder.path / "jobs" / "experts-code-seed-2.json").unlink()
    (folder.path / "jobs" / "merged-seed-0.json").unlink()
    result = summarize(study, folder)
    assert row_of(result, "mixed").seeds_done == (0, 2)
    assert [(f.seed, f.reason) for f in row_of(result, "mixed").failed] == [(1, "no <memory> | left")]
    assert row_of(result, "experts").seeds_done == (0, 1)
    assert row_of(result, "seq").difference["math"].mean == pytest.approx(-0.2 + 0.001)
    assert row_of(result, "merged").difference is None or row_of(result, "merged").seeds_done == (1, 2)
    text = markdown(result)
    assert "no &lt;memory> \\| left" in text
    assert "3 of 5 rows do not have all their seeds yet." in text


def test_nothing_done_is_an_empty_table(tmp_path):
    study = study_of(tmp_path, ROWS)
    result = summarize(study, StudyFolder(tmp_path / "studies" / "tiny"))
    assert all(row.scores == {} and row.cost is None for row in result.rows)
    assert "| mixed | - | - | - | 0 |" in markdown(result)
    assert "needs at least two seeds" in markdown(result)


def test_one_seed_has_no_interval_and_json_has_no_nan(tmp_path):
    study = study_of(tmp_path, {"mixed": "mixed"}, seeds=1)
    folder = StudyFolder(tmp_path / "studies" / "tiny")
    plant_run(folder, plan_jobs(study, folder.runs)[0], mixed(0))
    result = summarize(study, folder)
    write_result(tmp_path / "study.json", result)
    text = (tmp_path / "study.json").read_text()
    assert "NaN" not in text
    data = json.loads(text)
    assert (data["schema"], data["version"]) == ("counterpoint.study", 1)
    assert data["rows"][0]["scores"]["math"] == {"mean": 0.6, "low": None, "high": None, "by_seed": [0.6]}
    assert data["budget"] == {"steps": 6, "prompts_per_step": 2, "completions_per_step": 8}


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
