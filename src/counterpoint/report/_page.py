"""Turns content into one HTML file: figures as JSON, text through an escaping template, scripts inline."""

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import plotly.offline

from counterpoint.report._figures import Figure
from counterpoint.report._run_figures import run_figures
from counterpoint.report._text import duration, points, script_json, signed
from counterpoint.report.study import study_figures


def render(content: dict[str, Any], version: str | None = None) -> str:
    """The page on a run (see ``counterpoint.report.build``); with a ``version`` it asks its server for news."""
    names = {**content, "title": content["run"]["name"]}
    return _render("page.html.j2", names, run_figures(content), version)


def render_study(content: dict[str, Any], version: str | None = None) -> str:
    """The page on a study (see ``counterpoint.report.study.study_content``); ``version`` as for ``render``."""
    return _render("study.html.j2", {"study": content, "title": content["name"]}, study_figures(content), version)


def without_scripts(page: str) -> str:
    """``page`` without the bodies of its scripts but the figures: all that changes when a served page is refreshed."""
    for script in _scripts(live=True):
        page = page.replace(f"<script>{script}</script>", "")
    return page


def _render(template: str, names: dict[str, Any], figures: dict[str, Figure], version: str | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "duration": duration,
        "number": _number,
        "points": points,
        "decimal": _decimal,
    }
    scripts = _scripts(live=version is not None)
    return environment.get_template(template).render(
        **names,
        figures=figures,
        figures_json=script_json(figures),
        css=_asset("page.css"),
        scripts=scripts,
        policy=_policy(scripts, live=version is not None),
        version=version,
    )


@cache
def _scripts(live: bool) -> tuple[str, ...]:
    own = ("page.js", "live.js") if live else ("page.js",)
    return (plotly.offline.get_plotlyjs(), *map(_asset, own))


def _policy(scripts: Sequence[str], live: bool) -> str:
    """A Content-Security-Policy under which nothing loads from anywhere and no script runs but the page's own.

    A served page may ask its own server for news, and nobody else.
    """
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{value}'" for value in hashes)
    connections = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src {sources}; {connections}style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _asset(name: str) -> str:
    return (files("counterpoint.report") / "assets" / name).read_text(encoding="utf-8")


def _decimal(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")


def _number(value: float | None, digits: int = 0) -> str:
    """A number with thin spaces between thousands; a dash where there is none."""
    return "\u2013" if value is None else f"{value:,.{digits}f}".replace(",", "\u202f")
