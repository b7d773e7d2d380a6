"""Turns a report's content into one HTML file: figures as JSON, text through an escaping template, scripts inline."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import plotly.offline

from counterpoint.report._diagnosis_figures import diagnosis_figures
from counterpoint.report._figures import (
    comparison_figure,
    curve_figure,
    evaluation_figure,
    history_figure,
    with_reference,
)
from counterpoint.report._heat_maps import overview_figure, steps_figure
from counterpoint.report._text import duration, points, script_json, signed


def render(content: dict[str, Any]) -> str:
    """The page for ``content`` (see ``counterpoint.report.build``)."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "duration": duration, "number": _number, "points": points}
    template = environment.get_template("page.html.j2")
    shown = figures(content)
    scripts = [plotly.offline.get_plotlyjs(), _asset("page.js")]
    return template.render(
        **content,
        figures=shown,
        figures_json=script_json(shown),
        css=_asset("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
    )


def figures(content: dict[str, Any]) -> dict[str, Any]:
    """All figures of the page by their id; a figure without data is left out."""
    stages = content["run"]["stages"]
    rows = content["evaluation"]["rows"]
    found: dict[str, Any] = {}
    if any(row["before"] or row["after"] for row in rows):
        found["evaluation"] = evaluation_figure(rows)
    if content["comparison"]:
        found["comparison"] = comparison_figure(content["comparison"]["rows"], content["comparison"]["runs"])
    if max((len(domain["scores"]) for domain in content["evaluation"]["over_time"]), default=0) > 2:
        found["history"] = history_figure(content["evaluation"]["over_time"], stages)
    if content["diagnosis"]:
        found |= diagnosis_figures(content["diagnosis"])
    for panel in content["curves"]:
        found[f"curve-{panel['metric']}"] = curve_figure(panel["curves"], stages)
    return found | _surgery_figures(content, stages)


def _surgery_figures(content: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    surgery, found = content["surgery"], {}
    if surgery["conflict_rate"]["step"]:
        found["conflict-rate"] = with_reference(curve_figure([surgery["conflict_rate"]], stages, "p"), 0.5)
    if surgery["removed"]["step"]:
        found["removed"] = curve_figure([surgery["removed"]], stages, "p")
    if surgery["cosine"]:
        found["cosine"] = with_reference(curve_figure(surgery["cosine"], stages, "p", legend=True), 0.0)
    if content["cosines"]:
        found["module-overview"] = overview_figure(content["cosines"])
        found["module-steps"] = steps_figure(content["cosines"])
    return found


def _policy(scripts: list[str]) -> str:
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


def _number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash where there is none."""
    return "\u2013" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")
