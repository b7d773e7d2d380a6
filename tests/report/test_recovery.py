"""The section on recovery says what its files say; any of them may be missing, torn or of foreign types."""

import json

import pytest

from counterpoint.report import build, write_report
from counterpoint.report.read import read_run
from counterpoint.report.recovery import recovery_figures
from counterpoint.report.run import run_figures
from planted_recovery import BUDGETS, FIGURES, write_recovery
from report_page import cells

DOMAINS = ("math", "code", "qa", "writing")


@pytest.fixture
def recovered(run_dir):
    write_recovery(run_dir, DOMAINS)
    return run_dir


def content_of(run):
    return build([read_run(run)])


def change(run, name, **fields):
    path = run / "recovery" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def traces(figure):
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def test_a_run_without_recovery_has_no_section_and_misses_nothing(run_dir):
    assert "What was brought back" not in write_report(run_dir).read_text()
    assert content_of(run_dir)["recovery"] is None
    assert not content_of(run_dir)["notes"]


def test_the_page_says_what_fell_what_was_tried_and_what_was_kept(recovered):
    page = write_report(recovered).read_text()
    assert cells(page, "h-recovery") == [
        ["math", "40 and 80", "0.90 [0.88, 0.92]", "0.50 [0.48, 0.52]", "\u221240.0 [\u221242.0, \u221238.0]"]
    ]
    for text in (
        "math is back by the rollback.",
        "math is back by the refresh.",
        "The refresh was kept.",
        "kept</span>",
    ):
        assert text in page
    assert page.count("kept</span>") == 1


def test_what_is_said_of_which_prompts_chose_what_is_true(recovered):
    """Attempts are chosen by the held-out prompts, and a refresh stops by them; a mask is not chosen by them."""
    page = write_report(recovered).read_text()
    assert "on prompts that chose nothing" not in page
    assert "that chose nothing" not in page
    assert "The choice between attempts is made on these held-out prompts, and a refresh stops by them" in page
    assert "held-out prompts, 128 &times; 4, which did not choose the mask or the scale" in page


def test_the_table_names_the_controls_and_how_much_of_the_edit_each_moves(recovered):
    page = write_report(recovered).read_text()
    row = page[page.index("random, same tensors and sizes</th>") :].split("</tr>")[0]
    assert "<td>6.6&nbsp;%</td><td>72.0&nbsp;%</td>" in row
    assert "random, as many weights</th><td>3.0&nbsp;%</td>" in page


def test_the_search_has_every_mask_and_all_weights(recovered):
    shown = recovery_figures(content_of(recovered)["recovery"])
    assert set(shown) == FIGURES
    search = traces(shown["rollback-0-search"])
    assert search["masks moved back 100%"]["x"] == list(BUDGETS)
    assert search["masks moved back 100%"]["y"] == pytest.approx([0.503, 0.53, 0.8])
    assert search["masks moved back 50%"]["y"] == pytest.approx([0.5015, 0.515, 0.65])
    assert (search["all weights, part of the way"]["x"], search["all weights, part of the way"]["y"]) == ([1.0], [0.7])
    assert search["nothing moved back"]["y"] == [0.47, 0.47]
    assert (search["chosen by the mean over domains"]["x"]) == [0.1]


def test_the_held_out_prompts_have_every_model_with_its_interval(recovered):
    test = recovery_figures(content_of(recovered)["recovery"])["rollback-0-test"]["data"]
    named = ["before", "after", "mask", "random, same tensors and sizes", "random, as many weights"]
    assert [trace["name"] for trace in test] == named
    assert [trace["x"][0] for trace in test] == [0.9, 0.5, 0.8, 0.77, 0.54]
    assert test[2]["error_x"]["array"][0] == pytest.approx(0.02)
    heights = [height for trace in test for height in trace["y"]]
    assert len(set(heights)) == len(heights) == 20


def test_the_former_interval_is_a_band_and_the_course_begins_at_the_start(recovered):
    figure = recovery_figures(content_of(recovered)["recovery"])["refresh-0-scores"]
    assert [(shape["y0"], shape["y1"]) for shape in figure["layout"]["shapes"]] == [(0.88, 0.92)]
    math = traces(figure)["math"]
    assert math["x"] == [0, 4, 8, 12]
    assert math["y"] == pytest.approx([0.5, 0.62, 0.74, 0.86])


def test_fields_of_older_versions_are_passed_over(recovered):
    shown = content_of(recovered)["recovery"]
    change(recovered, "rollback", base="checkpoints/step-0")
    contraction = {"steps": [0, 4, 8], "shared": [2.0, 1.8, 1.6], "rate": 0.03, "verdict": "It contracts."}
    change(recovered, "refresh", contraction=contraction, other="code")
    assert content_of(recovered)["recovery"]["rollback"] == shown["rollback"]
    assert recovery_figures(content_of(recovered)["recovery"]) == recovery_figures(shown)
    assert "It contracts." not in write_report(recovered).read_text()


def test_results_in_folders_below_are_found_too(run_dir):
    write_recovery(run_dir, DOMAINS, folder="recovery/one")
    write_recovery(run_dir, DOMAINS, folder="recovery/two/recovery")
    found = content_of(run_dir)["recovery"]
    sources = [row["source"] for row in found["rollback"]]
    assert sources == ["recovery/one/rollback.json", "recovery/two/recovery/rollback.json"]
    assert len(run_figures(content_of(run_dir)).keys() & {"refresh-0-scores", "refresh-1-scores"}) == 2


def test_more_results_than_a_page_holds_are_counted(run_dir):
    for index in range(9):
        write_recovery(run_dir, DOMAINS, folder=f"recovery/{index}")
    found = content_of(run_dir)
    assert [len(found["recovery"][kind]) for kind in ("recover", "rollback", "refresh")] == [6, 6, 6]
    assert "3 of 27 files below recovery/ were left out." in found["notes"]


@pytest.mark.parametrize("name", ["rollback", "refresh", "recover"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "list", "object", "texts", "numbers", "nulls"])
def test_any_file_may_be_missing_or_damaged(recovered, name, damage):
    path = recovered / "recovery" / f"{name}.json"
    found = json.loads(path.read_text())
    wrong = {
        "texts": dict.fromkeys(found, "x"),
        "numbers": dict.fromkeys(found, 1e308),
        "nulls": dict.fromkeys(found),
        "object": {key: {"a": [{"b": None}]} for key in found},
    }
    for value in wrong.values():
        value["schema"] = found["schema"]
    bad = {"empty": "", "garbage": "{[", "list": "[1]"} | {key: json.dumps(value) for key, value in wrong.items()}
    path.unlink() if damage == "missing" else path.write_text(bad[damage])
    page = write_report(recovered).read_text()
    assert "</html>" in page
    assert "What was brought back" in page


def test_entries_of_the_wrong_kind_are_left_out_alone(recovered):
    path = recovered / "recovery" / "rollback.json"
    found = json.loads(path.read_text())
    odd = [None, 3, "x", {"budget": "x"}, {"budget": -1, "scale": 1}, {"budget": 1, "scale": None, "scores": [1]}]
    change(recovered, "rollback", tried=[*odd, *found["tried"]], measured=[*odd, *found["measured"]], judged=odd)
    search = traces(recovery_figures(content_of(recovered)["recovery"])["rollback-0-search"])
    assert search["masks moved back 100%"]["x"] == list(BUDGETS)
