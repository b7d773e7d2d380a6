"""The section on the diagnosis says what its files say, and nothing where there is none."""

import json
import re

import numpy as np
import pytest

from counterpoint.report import build, write_checkpoints, write_report
from counterpoint.report.cosines import module_cosines
from counterpoint.report.read import LEVELS, Grams, read_run
from counterpoint.report.run import run_figures as figures
from planted_diagnosis import FIGURES, write_diagnosis
from report_page import cells

DOMAINS = ("math", "code", "qa", "writing")
MODULES = ("embedding", "layers.0.attention", "layers.0.mlp", "layers.10.mlp", "layers.2.mlp", "norm")


@pytest.fixture
def diagnosed(run_dir):
    write_diagnosis(run_dir, DOMAINS, MODULES)
    return run_dir


def content_of(run):
    return build([read_run(run)])


def test_a_run_that_was_not_diagnosed_has_no_section_and_misses_nothing(run_dir):
    page = write_report(run_dir).read_text()
    assert "Which domain hurt which?" not in page
    assert content_of(run_dir)["diagnosis"] is None
    assert not content_of(run_dir)["notes"]


def test_the_matrix_says_what_the_changes_say(diagnosed):
    page = write_report(diagnosed).read_text()
    table = cells(page, "h-diagnosis")
    assert [row[0] for row in table] == list(DOMAINS)
    for i, row in enumerate(table):
        assert row[1 + i].startswith("+30.0 [+23.0, +37.0]")
        others = [cell for k, cell in enumerate(row[1:]) if k != i]
        assert all(cell.startswith("\u22128.0 [\u221215.0, \u22121.0]") for cell in others)
    section = page.split('id="h-diagnosis"')[1].split("</section>")[0]
    assert section.count('class="fell"') == 12 + 1  # and the word in the note that explains it
    assert "holds for all 16 cells at once" in page
    assert [heading for heading in re.findall(r'scope="col">(.*?)<', page) if heading.startswith("while")] == [
        f"while {name}" for name in DOMAINS
    ]


def test_every_pair_is_folded_under_its_cell(diagnosed):
    matrix = content_of(diagnosed)["diagnosis"]["matrix"]
    found = {
        (row["domain"], stage): [pair["later"] for pair in cell["pairs"]]
        for row in matrix["rows"]
        for stage, cell in zip(matrix["stages"], row["cells"], strict=True)
        if cell["pairs"]
    }
    expected = {(a, f"while {b}"): [b] for i, a in enumerate(DOMAINS) for b in DOMAINS[i + 1 :]}
    assert found == expected
    page = write_report(diagnosed).read_text()
    assert page.count('<details class="finding">') == 6
    assert "damage: 40% in norm" in page
    assert "<b>damage-code-qa</b>: too few prompts" in page


def test_the_verdicts_come_before_everything_folded_and_nothing_breaks_in_them(diagnosed):
    page = write_report(diagnosed).read_text()
    assert "<li>code fell.</li>" in page
    assert "<li>math lost \u22128.0 points while code was trained: " in page, "a true minus sign"
    assert '<span class="flag">--alone.</span>' in page


def test_a_cell_without_a_score_does_not_look_like_zero(diagnosed):
    path = diagnosed / "diagnosis" / "summary.json"
    found = json.loads(path.read_text())
    found["changes"] = found["changes"][1:]
    path.write_text(json.dumps(found))
    assert cells(write_report(diagnosed).read_text(), "h-diagnosis")[0][1] == "not measured"


def test_a_pair_without_a_number_keeps_its_column(diagnosed):
    path = diagnosed / "diagnosis" / "summary.json"
    found = json.loads(path.read_text())
    found["pairs"][0] |= {"conflict": None, "damage": None}
    path.write_text(json.dumps(found))
    shown = figures(content_of(diagnosed))
    for name in ("diagnosis-conflicts", "diagnosis-damage-modules"):
        (trace,) = shown[name]["data"]
        assert len(trace["x"]) == 6
        assert {row[0] for row in trace["z"]} == {None}
        assert {row[0] for row in trace["text"]} == {"\u2013"}


def test_given_checkpoints_have_a_page_of_their_own(diagnosed):
    page = write_checkpoints(diagnosed).read_text()
    assert "Nothing was trained" in page
    assert len(cells(page, "h-diagnosis")) == 4
    assert "What changed" not in page


def test_pictures_show_the_numbers_of_the_files(diagnosed):
    shown = figures(content_of(diagnosed))
    assert set(shown) >= FIGURES
    bars = {trace["name"]: trace for trace in shown["diagnosis-damage"]["data"]}
    assert list(bars) == ["measured", "first order", "second order", "Fisher"]
    assert bars["measured"]["x"] == [0.1 + 0.01 * i for i in range(6)]
    assert bars["measured"]["y"][0] == "code \u2192 math"
    conflicts = shown["diagnosis-conflicts"]["data"][0]
    assert conflicts["y"] == ["embedding", "0 attention", "0 mlp", "2 mlp", "10 mlp", "norm"]
    assert [row[0] for row in conflicts["z"]] == pytest.approx([-0.3, -0.2, -0.1, 0.1, 0.0, 0.2])
    assert [row[0] for row in conflicts["text"]] == ["\u2022", "", "\u2022", "", "\u2022", "\u2022"]
    damage = shown["diagnosis-damage-modules"]["data"][0]
    assert [row[0] for row in damage["text"]] == ["\u2022", "\u2022", "", "\u2022", "\u2022", "\u2022"]
    overlap = shown["diagnosis-overlap-edits"]["data"][0]
    assert overlap["z"][0] == [None, 0.1, 0.11, 0.13]
    assert overlap["text"][1][0] == "0.10 \u2022<br>(0.05)"


@pytest.mark.parametrize("name", ["summary", "behaviour"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "list", "wrong kinds"])
def test_any_file_of_a_diagnosis_may_be_missing_or_damaged(diagnosed, name, damage):
    path = diagnosed / "diagnosis" / f"{name}.json"
    found = json.loads(path.read_text())
    wrong = {key: {"a": 1} if isinstance(value, list) else 3 for key, value in found.items()}
    if damage == "wrong kinds" and name == "summary":
        wrong = {**found, "pairs": [{"earlier": 3, "damage": {"modules": [{"module": None}], "first": {"value": "x"}}}]}
    bad = {"empty": "", "garbage": "{[", "list": "[1]", "wrong kinds": json.dumps(wrong)}
    path.unlink() if damage == "missing" else path.write_text(bad[damage])
    page = write_report(diagnosed).read_text()
    assert "</html>" in page
    assert "Which domain hurt which?" in page


def test_numbers_that_could_not_be_computed_leave_gaps(diagnosed):
    path = diagnosed / "diagnosis" / "summary.json"
    found = json.loads(path.read_text())
    for pair in found["pairs"]:
        pair["damage"] = None
        pair["conflict"] = None
    found["pairs"][0]["edits"] = None
    path.write_text(json.dumps(found))
    shown = figures(content_of(diagnosed))
    assert "diagnosis-damage" not in shown
    assert "diagnosis-conflicts" not in shown
    assert shown["diagnosis-overlap-edits"]["data"][0]["z"][1] == pytest.approx([0.11, None, 0.12, 0.15])


def test_many_domains_and_modules_stay_below_six_megabytes(tmp_path, make_run):
    domains = [f"domain-{i:02d}" for i in range(12)]
    modules = [f"layers.{i}.{kind}" for i in range(80) for kind in ("attention", "mlp")]
    run = make_run(tmp_path / "big", domains=domains, modules=modules, steps=100)
    write_diagnosis(run, domains, modules)
    assert write_report(run).stat().st_size < 6_000_000
    content = build([read_run(run)], LEVELS[0])["diagnosis"]
    assert (len(content["pairs"]), content["pairs_left_out"]) == (28, 38)


def test_a_run_of_one_domain_after_another_has_no_map_of_cosines():
    gram_SGDD = np.full((4, 3, 2, 2), np.nan)
    gram_SGDD[:2, :, 0, 0] = gram_SGDD[2:, :, 1, 1] = 1.0
    alone = Grams(
        np.arange(4), gram_SGDD, ("embedding", "layers.0.mlp", "norm"), ("code", "math"), np.zeros((4, 0, 2)), ()
    )
    assert module_cosines(alone, LEVELS[0]) is None
    gram_SGDD[0] = 0.5
    assert module_cosines(alone, LEVELS[0])["negative_share"] == 0
