"""What the report says equals what the files say, and whatever is missing or torn is said instead of hidden."""

import errno
import json
import subprocess
import sys

import numpy as np
import pytest

from counterpoint.errors import RunError
from counterpoint.report import build, write_report
from counterpoint.report.cosines import layer_key
from counterpoint.report.curves import smooth
from counterpoint.report.read import RUN_FILES, Detail, read_run
from counterpoint.report.run import _bars
from counterpoint.report.run import run_figures as figures
from counterpoint.stats import difference_interval
from gram_files import write_grams
from report_page import cells


def content_of(path, compare=()):
    return build([read_run(item) for item in (path, *compare)])


def test_the_table_says_what_the_evaluations_say(run_dir):
    page = write_report(run_dir).read_text()
    rows = [json.loads(line) for line in (run_dir / "evals.jsonl").read_text().splitlines()]
    table = cells(page, "h-scores")
    assert [row[0] for row in table] == ["math", "code", "qa", "writing"]
    for cell in table:
        before, after = (
            next(row for row in rows if (row["domain"], row["when"]) == (cell[0], when)) for when in ("before", "after")
        )
        assert cell[1] == f"{before['mean']:.2f} [{before['low']:.2f}, {before['high']:.2f}]"
        assert cell[2] == f"{after['mean']:.2f} [{after['low']:.2f}, {after['high']:.2f}]"
        assert cell[3] == f"{after['mean'] - before['mean']:+.2f}"  # no interval: no scores of single prompts


def with_scores(run, when, scores):
    """Gives every evaluation of ``when`` in the run these scores of single prompts, by domain."""
    path = run / "evals.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["when"] == when:
            row["scores"] = scores[row["domain"]]
            row["mean"] = sum(row["scores"]) / len(row["scores"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


BEFORE = {name: [0.25, 0.0, 0.5, 0.25] * 8 for name in ("math", "code", "qa", "writing")}
AFTER = BEFORE | {"math": [0.75, 0.5, 1.0, 0.75] * 8, "qa": [0.0, 0.0, 0.0, 0.0] * 8}


def test_the_page_opens_with_the_verdict_and_three_numbers(run_dir):
    with_scores(run_dir, "before", BEFORE)
    with_scores(run_dir, "after", AFTER)
    content = content_of(run_dir)["evaluation"]
    assert content["head"]["verdict"] == "Fell beyond noise: qa. Rose beyond noise: math."
    mean, worst, count = content["head"]["numbers"]
    assert mean["label"] == "Average score: 0.25 before, 0.31 at the end"
    assert mean["change"].value == pytest.approx(0.25 * (0.5 - 0.25))
    corrected = difference_interval(BEFORE["qa"], AFTER["qa"], 1 - 0.05 / 5)
    assert (worst["label"], worst["change"]) == ("Worst domain: qa", corrected)
    assert count["text"] == "1 of 4"
    page = write_report(run_dir).read_text()
    assert page.index("Fell beyond noise: qa") < page.index("Average score") < page.index("trained with <b>mgs")
    change = cells(page, "h-scores")[2][3]
    assert change == f"{corrected.value:+.2f} [{corrected.low:+.2f}, {corrected.high:+.2f}]".replace("-", "\u2212")
    assert '<span class="fell">' in page


def test_without_a_score_per_prompt_there_is_no_verdict(run_dir):
    assert content_of(run_dir)["evaluation"]["head"] is None


def test_compared_runs_are_paired_by_prompt(tmp_path, make_run):
    mgs, mixed = make_run(tmp_path / "a"), make_run(tmp_path / "b", strategy="mixed", seed=1)
    with_scores(mgs, "after", AFTER)
    with_scores(mixed, "after", BEFORE)
    content = content_of(mgs, [mixed])
    assert content["comparison"].checkpoints == ("mgs", "mixed")
    assert content["same_start"]
    expected = difference_interval(AFTER["math"], BEFORE["math"], 1 - 0.05 / 5)
    assert content["comparison"].cell("mixed", "math").change == expected
    page = write_report(mgs, compare=[mixed]).read_text()
    assert "lower: math; higher: qa; within noise: code, writing." in page
    row = cells(page, "h-comparison")[0]
    assert row[:2] == ["math", "0.75 [0.41, 0.51]"]
    assert row[3] == f"{expected.value:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}]".replace("-", "\u2212")
    assert "did not start from the same scores" not in page


def test_runs_with_other_held_out_prompts_are_not_paired(tmp_path, make_run):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", strategy="mixed")
    for run in (first, second):
        with_scores(run, "after", AFTER)
    with (second / "config.yaml").open("a") as file:
        file.write("evaluation: {seed: 1}\n")
    row = cells(write_report(first, compare=[second]).read_text(), "h-comparison")[0]
    assert row[3] == "\u2013"


def test_the_curves_of_a_compared_run_are_broken_lines(tmp_path, make_run):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", strategy="mixed", seed=1)
    figure = figures(content_of(first, [second]))["curve-reward"]
    broken = [trace for trace in figure["data"] if trace["line"]["dash"] == "dash"]
    other = content_of(second)["curves"][0]["curves"]
    assert [trace["y"] for trace in broken] == [curve["smooth"] for curve in other]
    assert "Broken: mixed" in write_report(first, compare=[second]).read_text()


def test_runs_of_one_strategy_are_told_apart_by_name_and_a_different_start_is_said(tmp_path, make_run):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    rows = [json.loads(line) for line in (second / "evals.jsonl").read_text().splitlines()]
    rows[0]["mean"] += 0.1
    (second / "evals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(first, compare=[second]).read_text()
    assert content_of(first, [second])["labels"] == ["a", "b"]
    assert "did not start from the same scores" in page


def test_shares_and_facts_come_from_the_configuration_and_the_metrics(run_dir):
    run = content_of(run_dir)["run"]
    assert [row["share"] for row in run["domains"]] == [0.4, 0.2, 0.2, 0.2]
    assert (run["steps"], run["seconds"], run["tokens"]) == (60, 245, 540_000)
    assert run["started"] == "2026-11-22 09:00 UTC"


def test_an_unfinished_run_shows_its_latest_evaluation_and_says_so(run_dir):
    rows = [line for line in (run_dir / "evals.jsonl").read_text().splitlines() if '"after"' not in line]
    (run_dir / "evals.jsonl").write_text("\n".join(rows))
    page = write_report(run_dir).read_text()
    content = content_of(run_dir)
    assert content["evaluation"]["rows"][0]["after"]["step"] == 30
    assert "at the last evaluation so far" in page


def test_a_resumed_steps_later_line_replaces_the_earlier(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 60, "reward/math": 0.875}) + "\n")
    reward = content_of(run_dir)["curves"][0]["curves"][0]
    assert len(reward["step"]) == 60
    assert reward["value"][-1] == 0.875


def test_cosines_are_those_of_the_grams(run_dir):
    cosines = content_of(run_dir)["cosines"]
    gram = read_run(run_dir).grams
    pair = gram.gram_SGDD[:, 3, 0, 1] / np.sqrt(gram.gram_SGDD[:, 3, 0, 0] * gram.gram_SGDD[:, 3, 1, 1])
    assert cosines["modules"][3] == "layers.1.attention"
    np.testing.assert_allclose(cosines["cosine"][0][3], pair, atol=6e-4)
    assert cosines["overall"][0][3]["mean"] == pytest.approx(pair.mean(), abs=6e-5)
    # The fixture's one true clash: code against math in layer 1's MLP, at -0.5 / sqrt(1 + 0.25).
    assert cosines["overall"][0][4]["mean"] == pytest.approx(-0.447, abs=0.02)
    assert cosines["overall"][0][4]["negative"] == 1.0


def test_the_parts_of_a_reward_and_what_was_not_scored_stand_beside_the_total(run_dir):
    path = run_dir / "evals.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["domain"] == "math":
            row |= {"parts": {"right <b>": 0.25 if row["when"] == "before" else 0.5, "form": None}, "unscored": 7}
            row |= {"metrics": {"copying": 0.75}}
            row["scores"] = [None, 0.25, 0.5, 0.75 if row["when"] == "before" else 1.0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = content_of(run_dir)
    first = content["evaluation"]["rows"][0]
    assert first["parts"] == [
        {"part": "right <b>", "before": 0.25, "after": 0.5},
        {"part": "form", "before": None, "after": None},
        {"part": "metric copying", "before": 0.75, "after": 0.75},
    ]
    changes = content["evaluation"]["changes"]
    assert changes.comparisons == 5
    assert changes.cell("after", "math").change == difference_interval([0.25, 0.5, 0.75], [0.25, 0.5, 1.0], 0.99)
    page = write_report(run_dir).read_text()
    assert 'class="part"><th scope="row">right &lt;b&gt;</th><td>0.25</td><td>0.50</td><td>+0.25</td>' in page
    assert "7 not scored" in page


def test_absent_domains_are_gaps_and_not_zeros(run_dir):
    grams = read_run(run_dir).grams
    gram = grams.gram_SGDD.astype(np.float32)
    gram[:30, :, 0, :] = gram[:30, :, :, 0] = np.nan
    write_grams(run_dir / "grams.jsonl", gram, grams.groups, grams.domains)
    plane = content_of(run_dir)["cosines"]["cosine"][0]
    assert plane[0][0] is None
    assert plane[0][59] is not None


def test_modules_come_in_the_order_of_a_forward_pass():
    names = [
        "lm_head",
        "layers.10.mlp",
        "norm",
        "layers.2.attention",
        "embedding",
        "layers.2.mlp",
        "layers.10.attention",
    ]
    assert sorted(names, key=layer_key) == [
        "embedding", "layers.2.attention", "layers.2.mlp", "layers.10.attention", "layers.10.mlp", "norm", "lm_head",
    ]  # fmt: skip


def test_large_models_are_added_up_by_layer(tmp_path, make_run):
    modules = [f"layers.{i}.experts.{j}" for i in range(20) for j in range(12)]
    run = make_run(tmp_path / "moe", modules=modules, steps=4)
    cosines = content_of(run)["cosines"]
    assert cosines["by_layer"]
    assert cosines["modules"] == [f"layers.{i}" for i in range(20)]
    gram = read_run(run).grams.gram_SGDD[:, :12].sum(axis=1)  # layer 0
    np.testing.assert_allclose(
        cosines["cosine"][0][0], gram[:, 0, 1] / np.sqrt(gram[:, 0, 0] * gram[:, 1, 1]), atol=6e-4
    )


def test_smoothing_keeps_constants_and_lines_are_not_delayed():
    np.testing.assert_allclose(smooth(np.full(50, 0.3), 4.0), 0.3)
    np.testing.assert_allclose(smooth(np.arange(101.0), 4.0)[40:60], np.arange(40, 60), atol=1e-6)


def test_samples_keep_file_order_and_are_not_selected_by_reward(run_dir):
    rows = content_of(run_dir)["samples"][0]["samples"]
    assert [row["prompt"] for row in rows] == [f"Compute 17 + 25. ({i})" for i in range(4)]
    assert rows[0]["before"]["reward"] == 0.0
    assert rows[0]["after"]["step"] == 60


@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "evals.jsonl",
        "samples.jsonl",
        "grams.jsonl",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "garbage", "wrong shape"])
def test_any_file_may_be_missing_or_damaged(run_dir, name, damage):
    path = run_dir / name
    whole = path.read_bytes()
    bad = {
        "empty": b"",
        "torn": whole[: len(whole) * 2 // 3],
        "garbage": b"\xff\xfe{[\x00 not: [a",
        "wrong shape": b"[1, 2]\n",
    }
    path.unlink() if damage == "missing" else path.write_bytes(bad[damage])
    page = write_report(run_dir).read_text()
    assert "</html>" in page
    if damage == "missing":
        assert f"{name} is missing." in page


def test_a_torn_last_line_costs_that_line_alone(run_dir):
    path = run_dir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    content = content_of(run_dir)
    assert content["run"]["steps"] == 59
    assert "metrics.jsonl: 1 of 60 lines are torn or malformed, left out." in content["notes"]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "nine", "reward/math": [], "domain": {"a": 1}, "mean": "x", "low": null}',
        '{"step": 1e999, "reward/math": NaN, "domain": null, "mean": Infinity, "low": 1}',
        '{"step": 3, "reward/math": 1'
        + "0" * 400
        + ', "domain": "math", "when": [], "mean": 0.5, "prompt": [1], "reward": {}}',
        "[" * 100_000,
        "null",
    ],
)
def test_values_of_the_wrong_kind_are_no_numbers(run_dir, line):
    for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl"):
        with (run_dir / name).open("a") as file:
            file.write(line + "\n")
    assert content_of(run_dir)["run"]["steps"] == 60


def test_only_the_run_file_is_enough(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "bare", "domains": ["math"], "status": "running"}')
    page = write_report(tmp_path).read_text()
    assert "No evaluation has been recorded yet." in page
    assert "No completions have been recorded yet." in page


def test_what_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"found nothing at .*Pass the folder that train made"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=f"is no run directory: it holds none of {', '.join(RUN_FILES)}"):
        write_report(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="found a file"):
        write_report(tmp_path / "file")


def test_an_unwritable_report_says_so_and_leaves_the_old_one(run_dir, monkeypatch):
    old = write_report(run_dir).read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("counterpoint.disk.os.fsync", full)
    with pytest.raises(RunError, match=r"report\.html: "):
        write_report(run_dir)
    assert (run_dir / "report.html").read_bytes() == old
    assert not [path for path in run_dir.iterdir() if path.name.startswith(".report")]


def test_long_runs_with_many_domains_stay_below_six_megabytes(tmp_path, make_run):
    domains = [f"domain-{i:02d}" for i in range(12)]
    modules = [f"layers.{i}.{kind}" for i in range(40) for kind in ("attention", "mlp")]
    run = make_run(tmp_path / "big", domains=domains, modules=modules, steps=150, completion="<&> and so on " * 3000)
    assert write_report(run).stat().st_size < 6_000_000


def test_detail_bounds_hold(run_dir):
    small = Detail(curve_points=10, heat_cells=200, samples=1, characters=20, domains=2)
    content = build([read_run(run_dir)], small)
    assert len(content["run"]["domains"]) == 2
    assert len(content["curves"][0]["curves"][0]["value"]) == 10
    assert sum(len(row) for plane in content["cosines"]["cosine"] for row in plane) <= 200
    assert len(content["samples"][0]["samples"]) == 1
    assert len(content["samples"][0]["samples"][0]["prompt"]) <= 21
    assert any("2 of 4 domains are left out" in note for note in content["notes"])


def test_the_report_never_imports_torch(run_dir):
    code = (
        "import sys, pathlib; from counterpoint.report import write_report; "
        "write_report(pathlib.Path(sys.argv[1])); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run_dir)], check=False, timeout=60).returncode == 0


def test_the_command_prints_the_path_of_the_page(run_dir):
    typer = pytest.importorskip("typer", reason="the command line needs typer")
    from typer.testing import CliRunner

    from counterpoint.cli.report import report

    app = typer.Typer()
    app.command()(report)
    result = CliRunner().invoke(app, [str(run_dir), "--compare", str(run_dir)])
    assert result.exit_code == 0
    assert result.output.strip() == str(run_dir / "report.html")
    assert isinstance(CliRunner().invoke(app, [str(run_dir / "no")]).exception, RunError)


def test_the_picture_shows_when_each_domain_was_trained_and_how_it_changed(run_dir, tmp_path, make_run):
    figure = figures(content_of(run_dir))["overview"]
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [(bar["base"], bar["x"]) for bar in bars] == [([0.0], [60.0])] * 4
    assert [bar["width"] for bar in bars] == [0.5, 0.25, 0.25, 0.25]
    assert [mark["text"] for mark in figure["layout"]["annotations"]] == ["+0.25", "+0.18", "+0.11", "+0.04"]
    staged = make_run(tmp_path / "sequential", strategy="sequential", stages=True)
    info = json.loads((staged / "run.json").read_text())
    again = {"domains": ["math"], "first_step": 50, "last_step": 60, "kind": "refresh"}
    (staged / "run.json").write_text(json.dumps(info | {"stages": [*info["stages"], again]}))
    bars = [trace for trace in figures(content_of(staged))["overview"]["data"] if trace["type"] == "bar"]
    assert [(bar["base"], bar["x"]) for bar in bars][:2] == [([0, 50], [15, 10]), ([15], [15])]
    assert bars[0]["marker"]["opacity"] == [1.0, 0.5]


def test_a_picture_of_scores_or_of_training_alone(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    assert "xaxis2" not in figures(content_of(run_dir))["overview"]["layout"]
    (run_dir / "evals.jsonl").unlink()
    assert "overview" not in figures(content_of(run_dir))


def test_a_run_of_one_stage_that_left_domains_out_shows_bars_of_its_own_alone():
    run = {"steps": 5, "domains": [{"domain": "math", "share": 0.5}, {"domain": "code", "share": 0.5}]}
    stage = {"domains": ["code"], "kind": "refresh", "first_step": 0, "last_step": 5}
    math, code = _bars(run | {"stages": [stage]})
    assert (math["x"], code["x"]) == ([], [5])
    whole, _ = _bars(run | {"stages": [stage | {"domains": ["math", "code"]}]})
    assert (whole["x"], whole["text"]) == ([5], ["50 %"])


def test_tokens_and_completions_add_up_over_stages(run_dir):
    counts = [(0, 100), (0, 200), (1, 90), (1, 200), (2, 250), (3, 300), (3, 400)]
    lines = [json.dumps({"step": i + 1, "stage": s, "num_tokens": n}) for i, (s, n) in enumerate(counts)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines))
    config = {"training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_iterations": 2}}
    (run_dir / "config.yaml").write_text(json.dumps(config))
    (run_dir / "environment.json").write_text('{"ranks": 3}')
    run = content_of(run_dir)["run"]
    # Stage 2 begins with a count of one step, stage 3 as well: 250 < 2 * 200 and 300 < 2 * 250.
    assert run["tokens"] == 200 + 200 + 250 + 400
    assert run["completions"] == 7 * 8 * 2 * 3 / 2


def test_stages_of_a_sequential_run_are_marked_and_a_single_stage_is_not(tmp_path, make_run):
    run = make_run(tmp_path / "sequential", strategy="sequential", stages=True)
    stages = content_of(run)["run"]["stages"]
    assert [(stage["domain"], stage["first_step"]) for stage in stages][:2] == [("math", 0), ("code", 15)]
    marks = figures(content_of(run))["curve-reward"]["layout"]["annotations"]
    assert [mark["text"] for mark in marks] == ["math", "code", "qa", "writing"]
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"stages": info["stages"][:1]}))
    assert "annotations" not in figures(content_of(run))["curve-reward"]["layout"]


def test_who_trained_the_model_is_one_bar_for_each_kind_of_share(run_dir):
    content = content_of(run_dir)
    assert [row["what"] for row in content["weights"]] == ["prompts", "tokens", "loss"]
    shares = {row["what"]: [item["share"] for item in row["shares"]] for row in content["weights"]}
    assert shares["prompts"] == pytest.approx([0.25] * 4)
    assert shares["tokens"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    bars = figures(content)["weights"]["data"]
    assert [bar["name"] for bar in bars] == ["math", "code", "qa", "writing"]
    assert bars[3]["x"] == pytest.approx([0.25, 0.4, 0.4])
    assert "Who trains the model" in write_report(run_dir).read_text()


def test_a_run_that_logged_no_shares_has_no_such_picture(run_dir):
    path = run_dir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(("share_", "effective_"))} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "weights" not in figures(content_of(run_dir))
    assert "Who trains the model" not in write_report(run_dir).read_text()
