"""Turns content into one HTML file: figures as JSON, text through an escaping template, scripts inline."""

import base64
import hashlib
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import plotly.offline

from counterpoint.evaluation.comparison import Comparison
from counterpoint.report.diagnosis import diagnosis, diagnosis_figures
from counterpoint.report.plots import Figure, comparison_figure
from counterpoint.report.read import LEVELS
from counterpoint.report.run import run_figures
from counterpoint.report.study import study_content, study_figures
from counterpoint.report.text import Row, clean, duration, fact, list_of, points, prose, script_json, signed
from counterpoint.study.results import StudyResult

MAX_TEXT = 40_000
"""Characters of the longest text that a page repeats."""


def render(content: dict[str, Any]) -> str:
    """The page on a run (see ``counterpoint.report.build``)."""
    return _render("page.html.j2", {**content, "title": content["run"]["name"]}, run_figures(content))


def render_study(study: StudyResult) -> str:
    """The page on a study."""
    return _render("study.html.j2", {**study_content(study), "title": study.name}, study_figures(study))


def render_checkpoints(files: dict[str, Row], notes: Sequence[str]) -> str:
    """The page on given checkpoints from the ``files`` of their diagnosis, by name."""
    summary = files["summary"]
    domains = [str(name) for name in list_of(summary.get("domains"))[: LEVELS[0].domains]]
    content = diagnosis(files, domains, LEVELS[0])
    names = {
        "diagnosis": content,
        "notes": notes,
        "title": clean(summary.get("run"), 80),
    }
    return _render("checkpoints.html.j2", names, diagnosis_figures(content) if content else {})


def render_comparison(comparison: Comparison) -> str:
    """The page on checkpoints beside each other."""
    title = clean(", ".join(comparison.checkpoints), 200)
    figures = {"comparison": comparison_figure(comparison)}
    return _render("comparison.html.j2", {"comparison": comparison, "title": title}, figures)


def _render(template: str, names: dict[str, Any], figures: dict[str, Figure]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value, MAX_TEXT) if type(value) is str else value,
    )
    environment.filters |= {
        "signed": signed,
        "duration": duration,
        "number": _number,
        "points": points,
        "decimal": _decimal,
        "clean": clean,
        "fact": fact,
        "sentence": prose,
    }
    environment.tests["finite"] = math.isfinite
    scripts = _scripts()
    return environment.get_template(template).render(
        **names,
        figures=figures,
        figures_json=script_json(figures),
        css=_asset("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
    )


@cache
def _scripts() -> tuple[str, ...]:
    return plotly.offline.get_plotlyjs(), _asset("page.js")


def _policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy under which nothing loads from anywhere and no script runs but the page's own."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{value}'" for value in hashes)
    return (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (files("counterpoint.report") / "assets" / name).read_text(encoding="utf-8")


def _decimal(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")


def _number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash where there is none."""
    return "\u2013" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}".replace(",", "\u202f")
