"""What a reader can press, choose and slide on the page does what it says, in a real browser."""

import json

import pytest

from counterpoint.report import build, write_report, write_study_report
from counterpoint.report.read import read_run
from counterpoint.report.study import non_dominated, read_study
from planted_recovery import write_recovery
from planted_study import write_study

VISIBLE = "[...document.querySelectorAll('#samples article')].filter((item) => !item.hidden)"


@pytest.fixture
def page(browser):
    yield browser
    assert browser.problems == []


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
    """A run whose samples differ in what they gained, and the page of its report."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "mgs")
    path = folder / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rewards = {0: 0.25, 1: 1.0, 2: 0.5, 3: 0.0}
    for row in rows:
        row["reward"] = 0.5 if row["when"] == "before" else rewards[int(row["prompt"][-2])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(folder), write_report(folder)


@pytest.fixture
def opened(run, chromium):
    """That page, opened once for all: each test sets its own controls."""
    address = run[1].as_uri()
    if chromium.run("location.href") != address:
        chromium.new()
        chromium.open(address)
    yield chromium
    assert chromium.problems == []


def test_samples_are_filtered_by_domain_and_sorted_by_gain(opened):
    page = opened
    prompts = f"{VISIBLE}.map((item) => item.dataset.domain + item.querySelector('.prompt pre').textContent.at(-2))"
    assert page.run(prompts) == ["00", "01", "10", "11", "20", "21", "30", "31"]
    page.click("#sample-more")
    assert page.run(f"{VISIBLE}.length") == 16
    page.click("#sample-more")
    page.set("#sample-domain", "2")
    assert page.run(prompts) == ["20", "21", "22", "23"]
    page.set("#sample-order", "gain")
    assert page.run(prompts) == ["21", "22", "20", "23"]
    page.set("#sample-order", "loss")
    assert page.run(prompts) == ["23", "20", "22", "21"]
    page.set("#sample-order", "file")
    page.set("#sample-domain", "")
    assert page.run(prompts) == ["00", "01", "10", "11", "20", "21", "30", "31"]


def test_the_slider_moves_the_map_by_layer(opened, run):
    page, cosines = opened, build([run[0]])["cosines"]
    page.set("#pair", "0")
    page.set("#window", "1")
    page.set("#moment", "0")
    shown = page.run("document.getElementById('module-time').data[0].z")
    at = cosines["modules"].index("layers.1.mlp")
    rows = page.run("document.getElementById('module-time').data[0].y")
    assert rows == ["embedding", "layer 0", "layer 1", "layer 10", "norm"]
    assert shown[2][1] == cosines["cosine"][0][at][0]  # the first pair's block: attention, then mlp
    assert shown[2][2] is None  # between two blocks
    assert shown[2][4] == cosines["cosine"][1][at][0]
    assert shown[0][0] == shown[0][1] == cosines["cosine"][0][0][0]  # the embedding fills its block
    assert shown[3][0] is None  # layer 10 has no attention
    assert page.run("document.getElementById('moment-text').textContent") == "step 1"
    page.set("#window", "0.3")
    page.set("#moment", "30")
    mean = sum(cosines["cosine"][0][at][21:39]) / 18
    assert page.run("document.getElementById('module-time').data[0].z")[2][1] == pytest.approx(mean)
    assert page.run("document.getElementById('moment-text').textContent") == "steps 22 to 39"


def test_chips_hide_a_domain_in_all_curves_and_the_pair_changes_the_map(opened, run):
    page, cosines = opened, build([run[0]])["cosines"]
    page.click('button[data-domain="1"]')
    hidden = "document.getElementById('{}').data.filter((trace) => trace.visible === false).map((trace) => trace.meta)"
    assert page.run(hidden.format("curve-reward")) == [1, 1]
    assert page.run(hidden.format("history")) == [1]
    assert page.run(hidden.format("cosine")) == []
    pressed = "[...document.querySelectorAll('button[data-domain=\"1\"]')].map((item) => item.ariaPressed)"
    assert set(page.run(pressed)) == {"false"}
    page.set("#pair", "3")
    assert page.run("document.getElementById('module-steps').data[0].z") == cosines["cosine"][3]


def test_two_selectors_choose_the_pareto_plot(tmp_path, page):
    page.open(write_study_report(write_study(tmp_path / "study")).as_uri())
    titles = "['xaxis', 'yaxis'].map((name) => document.getElementById('study-pareto').layout[name].title.text)"
    assert page.run(titles) == ["score, math", "score, code"]
    page.set("#pareto-x", "4")
    page.set("#pareto-y", "2")
    assert page.run(titles) == ["score, average", "score, qa"]
    rows = [row for row in read_study(tmp_path / "study").rows if row.kind != "base"]
    points = [(row.scores["average"].mean.value, row.scores["qa"].mean.value) for row in rows]
    best = [row.name for row, flag in zip(rows, non_dominated(points), strict=True) if flag]
    traces = page.run(
        "document.getElementById('study-pareto').data.map(({mode, hovertext, x, y}) => ({mode, hovertext, x, y}))"
    )
    named = next(trace for trace in traces if trace["mode"] == "markers+text")
    assert named["hovertext"] == best
    page.set("#pareto-y", "4")  # a score against itself: nothing to show
    assert page.run("document.getElementById('study-pareto').data.length") == 0


def test_nothing_is_wider_than_a_phone(tmp_path, run_dir, page):
    write_recovery(run_dir, ("math", "code", "qa", "writing"))
    folder = write_study(tmp_path / "study")
    page.resize(375, 800)
    for path in (write_report(run_dir), write_study_report(folder)):
        page.open(path.as_uri())
        for dark in (False, True):
            page.theme(dark)
            assert page.run("document.documentElement.scrollWidth") <= 375
            background = page.run("getComputedStyle(document.body).backgroundColor")
            assert (background == "rgb(21, 23, 27)") == dark


def test_a_table_that_is_wider_than_its_place_says_so(tmp_path, make_run, page):
    path = write_report(make_run(tmp_path / "a"), compare=[make_run(tmp_path / "b", strategy="mixed")])
    hint = "[...document.querySelectorAll('.scroll.wide')].map((box) => getComputedStyle(box, '::before').content)"
    page.resize(390, 800)
    page.open(path.as_uri())
    assert any("scroll sideways" in text for text in page.run(hint))
    page.resize(*page.SIZE)
    page.wait(f"{hint}.length === 0")
