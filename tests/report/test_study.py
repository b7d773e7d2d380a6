"""The page on a study says what ``study.json`` says, marks what failed, and survives a torn file."""

import json

import pytest

from counterpoint.errors import RunError
from counterpoint.report import is_study, write_report, write_study_report
from counterpoint.report.study import label_places, non_dominated, read_study, study_figures
from planted_study import VERDICT, figures, interval, write_study
from report_page import cells

DOMAINS = ("math", "code", "qa", "writing")


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "pocket")


def change(folder, **fields):
    path = folder / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_table_says_what_the_file_says(folder):
    page = write_study_report(folder).read_text()
    table = {row[0]: row[1:] for row in cells(page, "h-scores")}
    assert list(table)[:2] == ["base", "mixed reference"]
    assert table["mgs"] == [*(f"{v:.2f} [{v - 0.02:.2f}, {v + 0.02:.2f}]" for v in (0.72, 0.72, 0.74, 0.76, 0.68)), "5"]
    assert table["seq"][-1] == "4 1 failed"
    assert table["base"][-1] == "once"
    assert "<b>seq</b>, seed 4: out of memory" in page


def test_the_page_opens_with_the_verdicts(folder):
    page = write_study_report(folder).read_text()
    lead = page[page.index("<h1") : page.index("<nav")]
    shown = VERDICT.replace("[-", "[\u2212")
    assert lead.index(shown) < lead.index("ways to train one model")
    assert "<b>7</b> ways to train one model" in lead  # the untouched base is none of them


def test_planned_contrasts_have_verdicts_and_the_rest_has_none(folder):
    page = write_study_report(folder).read_text()
    planned = {row[0]: row[1:] for row in cells(page, "h-planned")}
    assert planned["mgs average"] == ["+0.012 [\u22120.010, +0.034]", "not decided", "0.04", "0.35", "11"]
    assert planned["experts average"][1] == "better"
    exploratory = {row[0]: row[1:] for row in cells(page, "h-differences")}
    assert "mixed" not in exploratory
    assert "base" not in exploratory
    assert exploratory["experts"] == ["+0.150 [+0.120, +0.180]"] * 5  # in the unit of the plots
    section = page[page.index('id="h-differences"') : page.index('id="h-made"')]
    assert "not corrected" in section
    assert not any(f">{word}<" in section for word in ("better", "worse", "not decided"))
    assert page.count('class="fell"') == page.count('class="rose"') == 1


def test_a_study_without_a_plan_says_how_to_make_one(folder):
    change(folder, contrasts=[], verdicts=[], notes=["Nothing is decided: name contrasts."])
    page = write_study_report(folder).read_text()
    assert 'id="h-planned"' not in page
    assert "Nothing is decided: name contrasts." in page[: page.index("<nav")]


def test_rows_made_of_others_stand_beside_these(folder):
    table = {row[0]: row[1:] for row in cells(write_study_report(folder).read_text(), "h-made")}
    assert len(table) == 1
    (name, row) = table.popitem()
    assert name.endswith(" of seq")
    assert row == [row[0]] * 5
    change(folder, rows=[{"name": "mixed"}])
    assert 'id="h-made"' not in write_study_report(folder).read_text()


def test_forest_plots_colour_what_was_planned_and_decided(folder):
    shown = study_figures(read_study(folder))
    forest = shown["study-forest-average"]
    names = forest["layout"]["yaxis"]["ticktext"]
    colours = {names[y]: trace["marker"]["color"] for trace in forest["data"] for y in trace["y"]}
    assert colours["experts"] == "@high"
    assert colours["mgs"] == "@ink"  # planned, not decided
    assert colours["seq"] == colours["ties"] == "@muted"  # of seq another measure was planned
    assert forest["layout"]["shapes"][0]["x0"] == 0.0
    assert "base" not in names  # so far away that the others would lie on one another
    planned = shown["study-planned"]
    assert planned["layout"]["yaxis"]["ticktext"][2] == "seq - mixed, math"
    assert [trace["marker"]["color"] for trace in planned["data"]] == ["@ink", "@high", "@low"]


def test_names_in_a_plot_do_not_overlap():
    extents = (0.5, 0.9), (0.5, 0.9)
    near = [(0.7, 0.7, "mgs"), (0.701, 0.702, "mixed"), (0.699, 0.701, "soft/mgs"), (0.7, 0.7, "x"), (0.7, 0.7, "y")]
    places = label_places(near, extents)
    assert places[0] == "top center"
    named = [place for place in places if place]
    assert len(set(named)) == len(named)
    assert "" in places  # no room for all of them
    assert label_places([(0.5, 0.5, "a"), (0.9, 0.9, "b")], extents) == ["top center"] * 2


def test_every_seed_is_shown(folder):
    seeds = study_figures(read_study(folder))["study-average"]["data"][0]
    assert len(seeds["x"]) == 5 * 7 - 1  # all rows but the base, one seed failed


def test_the_lowest_domain_of_every_seed_is_shown_beside_the_level_of_starving(folder):
    worst = {"score": {"mean": interval(0.45), "by_seed": [0.3, 0.6]}, "starved": 1}
    rows = json.loads((folder / "study.json").read_text())["rows"]
    change(folder, starved=0.5, rows=[row | {"worst": worst} for row in rows if row["name"] == "mixed"])
    figure = study_figures(read_study(folder))["study-lowest"]
    assert figure["data"][0]["x"] == [0.3, 0.6]
    assert figure["layout"]["shapes"][0]["x0"] == 0.5
    assert 'id="study-lowest"' in write_study_report(folder).read_text()


def test_all_figures_are_there_and_none_without_data(folder):
    assert set(study_figures(read_study(folder))) == figures(DOMAINS)
    change(folder, rows=[], contrasts=[])
    assert study_figures(read_study(folder)) == {}
    assert "No row has been finished yet." in write_study_report(folder).read_text()


def test_one_domain_has_no_trade_off(tmp_path):
    shown = study_figures(read_study(write_study(tmp_path / "one", ["math"])))
    assert set(shown) == figures(["math"]) - {"study-pareto"}


def test_non_dominated_by_brute_force():
    points = [(0.1 * (k * 7 % 11), 0.1 * (k * 5 % 13)) for k in range(30)] + [(1.0, 0.2), (1.0, 0.2), (0.2, 1.2)]
    for point, best in zip(points, non_dominated(points), strict=True):
        beaten = any((a > point[0] and b >= point[1]) or (a >= point[0] and b > point[1]) for a, b in points)
        assert best == (not beaten)
    assert sum(non_dominated([(1.0, 0.2), (1.0, 0.2)])) == 2  # equals do not beat each other


def test_a_row_in_progress_says_how_far_it_is(folder):
    rows = json.loads((folder / "study.json").read_text())["rows"]
    rows[2] |= {"seeds_done": [0], "scores": {}, "difference": None, "cost": None}
    rows[3]["scores"]["average"] = {"mean": {"value": 0.5, "low": None, "high": None}, "by_seed": [0.5]}
    change(folder, rows=rows)
    table = {row[0]: row[1:] for row in cells(write_study_report(folder).read_text(), "h-scores")}
    assert table["mgs"] == ["\u2013", "\u2013", "\u2013", "\u2013", "\u2013", "1 of 5"]
    assert table["seq"][0] == "0.50"
    assert "not all of it is done" in (folder / "study.html").read_text()


@pytest.mark.parametrize(
    "damage", ["empty", "garbage", "list", "texts", "numbers", "nulls", "objects", "rows", "contrasts"]
)
def test_a_damaged_file_still_gives_a_page(folder, damage):
    path = folder / "study.json"
    found = json.loads(path.read_text())
    bad = {
        "empty": "", "garbage": '{"rows": [', "list": "[]", "texts": json.dumps(dict.fromkeys(found, "x")),
        "numbers": json.dumps(dict.fromkeys(found, 1e308)), "nulls": json.dumps(dict.fromkeys(found)),
        "objects": json.dumps({key: {"a": [{"b": 1}]} for key in found}),
        "rows": json.dumps(found | {"rows": [None, 3, "x", {}, {"scores": [], "difference": 3, "failed": "x"}]}),
        "contrasts": json.dumps(found | {"contrasts": [None, {}, {"row": [], "change": 3, "seeds_needed": "x"}]}),
    }  # fmt: skip
    path.write_text(bad[damage])
    assert "</html>" in write_study_report(folder).read_text()
    if damage == "garbage":
        assert "study.json is not a whole JSON object" in write_study_report(folder).read_text()


def test_many_rows_and_domains_stay_small_and_say_what_is_missing(tmp_path):
    rows = [(f"row-{k}", "train", 0.5) for k in range(60)]
    folder = write_study(tmp_path / "big", [f"domain-{k}" for k in range(14)], rows=rows)
    page = write_study_report(folder)
    assert page.stat().st_size < 6_000_000
    assert "20 of 60 rows are left out" in page.read_text()
    assert "4 of 14 domains are left out" in page.read_text()


def test_the_study_is_left_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_study_report(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "study.html"} == before


def test_what_is_no_study_is_refused(tmp_path, folder, run_dir):
    with pytest.raises(RunError, match=r"is no study: it holds no study\.json"):
        write_study_report(tmp_path)
    with pytest.raises(RunError, match="is no run directory"):
        write_report(folder)
    assert is_study(folder)
    assert not is_study(run_dir)


def test_the_command_takes_a_study(folder):
    from typer.testing import CliRunner

    from counterpoint.cli.app import app

    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.output.strip() == str(folder / "study.html")
    compared = CliRunner().invoke(app, ["report", str(folder), "--compare", str(folder)])
    assert isinstance(compared.exception, RunError)


def test_lists_and_mappings_are_shown_in_words(folder):
    change(folder, environment={"packages": {"torch": "2.13.0"}, "command": ["counterpoint", "study", "s.yaml"]})
    page = write_study_report(folder).read_text()
    assert ">torch 2.13.0</td>" in page
    assert ">counterpoint, study, s.yaml</td>" in page


def test_a_number_that_is_none_is_a_dash(folder):
    study = json.loads((folder / "study.json").read_text())
    for row in study["rows"]:
        row["cost"] = {"steps": None, "tokens": None, "seconds": None}
    change(folder, rows=study["rows"], worth=None)
    page = write_study_report(folder).read_text()
    assert {tuple(row[1:]) for row in cells(page, "h-cost")} == {("\u2013",) * 3}
    assert "Power for it" in page
