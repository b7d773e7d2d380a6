"""Nothing that a model or a data set wrote can run, load or break the page: in the source, and in a real browser."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml

from counterpoint.evaluation.comparison import compare_scores
from counterpoint.report import build, write_comparison, write_report, write_study_report
from counterpoint.report.read import read_run
from counterpoint.report.text import clean, plot_text, script_json
from planted_diagnosis import FIGURES, write_diagnosis
from planted_recovery import FIGURES as RECOVERY
from planted_recovery import write_recovery
from planted_study import figures as study_figures
from planted_study import write_study

ATTACKS = {
    "script": "<script>alert(1)</script>",
    "close": "</script><script>console.error('ran')</script><!--<script>",
    "image": "<img src=x onerror=\"console.error('ran')\"><svg onload=console.error('ran')>",
    "link": "<a href=\"javascript:console.error('ran')\">go</a> [go](javascript:console.error('ran'))",
    "quotes": "\"'` onmouseover=console.error('ran') x=\"{{ 7*7 }}{% raw %}${7*7}",
    "plotly": "$x^2$ %{y} <b>bold</b> <a href='javascript:alert(1)'>a</a> &lt;i&gt; <br>",
    "unicode": "lone \ud800 low \udc00 pair \ud83d\ude00 nul \x00 esc \x1b bidi \u202ea sep \u2028\u2029 \ufeff\uffff",
}
ALLOWED = set(
    re.findall(
        r"\w+",
        "html head meta title link style body header p h1 h2 h3 h4 b i em a nav span dl div dt dd main section figure "
        "figcaption table caption thead tr th td tbody tfoot button aside select option label input output article pre "
        "details summary ul ol li sup footer code noscript script",
    )
)


class Tags(HTMLParser):
    """The page's elements, attributes and scripts as a browser would find them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.scripts = set(), [], 0

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.scripts += tag == "script"


def attacked_run(make_run, path, texts):
    """A run whose every text field holds ``texts``, its domains and modules one each."""
    joined = "\n".join(texts)
    modules = ("embedding", *texts, "layers.0.mlp", "layers.1.mlp", "layers.2.mlp")
    domains = ["math", "@ink", *dict.fromkeys(short for text in texts for short in (text[:60], text[:60] + "x"))]
    run = make_run(
        path, domains=domains, strategy=joined, prompt=joined, completion=joined, note=joined, steps=8, stages=True,
        modules=modules,
    )  # fmt: skip
    write_diagnosis(run, domains, modules, note=joined)
    write_recovery(run, domains, note=joined)
    return run


def attacked_study(path, texts):
    """A study whose every text field holds ``texts``."""
    return write_study(path, ["math", *dict.fromkeys(texts)], note="\n".join(texts))


def overwritten(value, text):
    """``value`` with ``text`` for every text, and beside every key."""
    if isinstance(value, dict):
        return {key: overwritten(item, text) for key, item in value.items()} | {text: text}
    if isinstance(value, list):
        return [overwritten(item, text) for item in value]
    return text if isinstance(value, str) else value


def overwrite(folder, text):
    """Replaces every text in every file below ``folder``, structure and all: names, kinds, verdicts, moments."""
    for path in folder.rglob("*.json"):
        path.write_text(json.dumps(overwritten(json.loads(path.read_text()), text)))
    for path in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(overwritten(row, text)) + "\n" for row in rows))
    for path in folder.glob("*.yaml"):
        path.write_text(yaml.safe_dump(overwritten(yaml.safe_load(path.read_text()), text), allow_unicode=False))


def assert_only_our_own(page):
    found = Tags()
    found.feed(page)
    assert found.tags <= ALLOWED
    assert found.scripts == 3
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    places = [value for name, value in found.attributes if name in ("href", "src", "action") and value != "data:,"]
    assert all(re.fullmatch("#h-[a-z]+", value) for value in places)


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_the_source_holds_only_our_own_elements(tmp_path, make_run, text):
    assert_only_our_own(write_report(attacked_run(make_run, tmp_path / "run", [text])).read_text(encoding="utf-8"))
    assert_only_our_own(write_study_report(attacked_study(tmp_path / "study", [text])).read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_comparison_holds_only_our_own_elements(tmp_path, text):
    name = clean(text)
    found = compare_scores({"a": {name: [0.1, 0.2], "y": [0.1, 0.3]}, name: {name: [0.3, 0.2], "y": [0.1, 0.3]}})
    assert_only_our_own(write_comparison(found, tmp_path).read_text(encoding="utf-8"))


def overwritten_pages(tmp_path, make_run, text):
    domains, modules = ("math", "code"), ("embedding", "layers.0.mlp", "norm")
    run = make_run(tmp_path / "run", domains=domains, modules=modules, steps=6, stages=True)
    write_diagnosis(run, domains, modules)
    write_recovery(run, domains)
    study = write_study(tmp_path / "study", domains)
    overwrite(run, text)
    overwrite(study, text)
    return write_report(run), write_study_report(study)


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_text_in_place_of_every_text_adds_no_element(tmp_path, make_run, text):
    for page in overwritten_pages(tmp_path, make_run, text):
        assert_only_our_own(page.read_text(encoding="utf-8"))


def test_a_page_without_escaping_would_be_caught():
    """Negative control of the test above."""
    found = Tags()
    found.feed("<p>" + ATTACKS["image"] + ATTACKS["link"])
    assert not found.tags <= ALLOWED
    assert [name for name, _ in found.attributes if name.startswith("on")]


def test_the_policy_forbids_every_load_and_every_foreign_script(run_dir):
    page = write_report(run_dir).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src &#39;none&#39;" in policy
    assert "unsafe-inline" not in re.search(r"script-src([^;]*);", policy).group(1)
    assert "http" not in policy


def test_clean_joins_pairs_and_shows_what_cannot_be_seen():
    assert clean("\ud83d\ude00") == "\U0001f600"
    assert clean("a\ud800b\udc00c") == "a\ufffdb\ufffdc"
    assert clean("\x00\x1b\x7f") == "\u2400\u241b\u2421"
    assert clean("tab\tand\r\nline") == "tab\tand\nline"
    assert clean("\u202eabc") == "\u27e8U+202E\u27e9abc"
    assert clean("abcdef", 3) == "abc\u2026"
    assert clean(None) == ""
    clean("\ud83d\ude00" * 10, 3).encode()  # a cut through a pair leaves no half behind


def test_plot_texts_hold_no_markup():
    text = plot_text(ATTACKS["plotly"], 200)
    assert not re.search(r"[<>$]|%\{", text)


def test_script_json_cannot_end_its_script_and_reads_back():
    value = {"a": "</script><!-- \u2028 & >", "b": [1, None]}
    text = script_json(value)
    assert not re.search("[<>&\u2028\u2029]", text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(float("nan"))


def plots(document):
    """The ids of the page's plot elements, and of those in which plotly has drawn."""
    elements = re.findall(
        r'<div class="plot[^"]*" id="([^"]+)"(.*?)(?=<div class="plot[ "]|<footer)', document, re.DOTALL
    )
    return [name for name, _ in elements], [name for name, body in elements if "main-svg" in body]


MODULE_FIGURES = {"module-overview", "module-steps", "module-time"}
RUN_FIGURES = FIGURES | RECOVERY | MODULE_FIGURES | {
    "overview", "comparison", "history", "cosine", "conflict-rate", "removed", "curve-reward", "curve-entropy",
    "curve-completion_length", "curve-truncated", "curve-zero_advantage", "curve-effective_weight", "weights",
}  # fmt: skip


def assert_drawn(document, console, wanted):
    """Every plot is drawn, nothing was logged, nothing points anywhere but into the page."""
    expected, drawn = plots(document)
    assert console == []
    assert drawn == expected
    assert set(expected) == wanted
    built = Tags()
    built.feed(document)
    # Plotly draws heat maps as data: images; nothing else may point anywhere.
    places = [value for name, value in built.attributes if name.endswith(("href", "src"))]
    assert all(value.startswith("data:") or re.fullmatch("#h-[a-z]+", value) for value in places)
    assert not {"img", "iframe"} & built.tags


def test_chromium_draws_every_plot_and_logs_nothing(tmp_path, make_run, browser):
    run = make_run(tmp_path / "run")
    write_diagnosis(run, ("math", "code", "qa", "writing"), ("layers.0.attention", "layers.0.mlp", "norm"))
    write_recovery(run, ("math", "code", "qa", "writing"))
    other = make_run(tmp_path / "other", strategy="mixed", domains=["math"], steps=6)
    document, console = browser.load(write_report(run, compare=[other]))
    assert_drawn(document, console, RUN_FIGURES)


@pytest.mark.parametrize("lone", [False, True], ids=["attacked", "lone surrogates"])
def test_chromium_draws_every_plot_of_hostile_texts_and_runs_nothing_else(tmp_path, make_run, browser, lone):
    texts = list(ATTACKS.values()) if lone else [re.sub("[\ud800-\udfff]", "?", text) for text in ATTACKS.values()]
    run = attacked_run(make_run, tmp_path / "run", texts)
    other = make_run(tmp_path / "other", strategy="mixed", domains=["math"], steps=6)
    document, console = browser.load(write_report(run, compare=[other]))
    assert_drawn(document, console, RUN_FIGURES - (MODULE_FIGURES if lone else set()))


def test_grams_with_names_that_are_no_text_are_left_out_and_noted(tmp_path, make_run):
    """A lone surrogate cannot be written as UTF-8: no program of ours made the file."""
    run = read_run(make_run(tmp_path / "run", domains=("math", "code"), modules=("embedding", "mlp \ud800"), steps=6))
    assert run.grams is None
    assert [
        note for note in run.notes if note.startswith("grams.jsonl, line 1: cannot be read") and "surrogates" in note
    ]
    assert build([run])["cosines"] is None


@pytest.mark.parametrize("texts", [[], list(ATTACKS.values())], ids=["plain", "attacked"])
def test_chromium_draws_a_study(tmp_path, browser, texts):
    study = attacked_study(tmp_path / "study", texts) if texts else write_study(tmp_path / "study")
    domains = json.loads((study / "study.json").read_text())["domains"]
    document, console = browser.load(write_study_report(study))
    assert_drawn(document, console, study_figures(domains))


def test_chromium_runs_nothing_of_a_text_in_place_of_every_text(tmp_path, make_run, browser):
    for page in overwritten_pages(tmp_path, make_run, "\n".join(ATTACKS.values())):
        document, console = browser.load(page)
        expected, drawn = plots(document)
        assert (console, drawn) == ([], expected)


def test_chromium_reports_what_does_run(tmp_path, browser):
    """Negative control: without escaping the same text does run, and the console check sees it."""
    page = tmp_path / "page.html"
    page.write_text(ATTACKS["close"])
    assert any("'ran'" in line for line in browser.load(page)[1])


def test_the_policy_stops_a_script_even_if_escaping_failed(run_dir, tmp_path, browser):
    page = write_report(run_dir)
    page.write_text(page.read_text().replace("</main>", ATTACKS["close"].removesuffix("<!--<script>") + "</main>"))
    console = browser.load(page)[1]
    assert any("Content Security Policy" in line for line in console)
    assert not any("'ran'" in line for line in console)


@pytest.mark.parametrize("scores", [5, {"a": 1}, "x", [None, "x"]])
def test_scores_of_prompts_of_any_type_leave_the_page_whole(tmp_path, make_run, scores):
    run = make_run(tmp_path / "run", domains=("math", "code"), steps=6)
    rows = [json.loads(line) | {"scores": scores} for line in (run / "evals.jsonl").read_text().splitlines()]
    (run / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "held-out score" in write_report(run).read_text()
