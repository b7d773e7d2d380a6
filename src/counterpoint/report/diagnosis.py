"""What the summary and the behaviour of a diagnosis say, cleaned, and its figures: who hurt whom, and where."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report.cosines import MAX_MODULES, labels_of, layer_key, layout_of, map_of
from counterpoint.report.plots import Figure, Trace, bar_figure, bars
from counterpoint.report.read import Detail
from counterpoint.report.text import (
    Content,
    Row,
    clean,
    estimate,
    names_of,
    number,
    plot_text,
    prose,
    row_of,
    rows_of,
    texts_of,
)

MAX_PAIRS = 28
"""Pairs shown: all pairs of eight domains."""

TERMS = ("measured", "first", "second", "fisher")
"""Terms of a damage."""


def diagnosis(files: dict[str, Row], domains: list[str], detail: Detail) -> Content | None:
    """The report's content on a diagnosis, whose ``files`` are by name; None where there are none."""
    summary, behaviour = files.get("summary", {}), files.get("behaviour", {})
    if not summary and not behaviour:
        return None
    rows = rows_of(summary.get("pairs"))
    pairs = [_pair(row) for row in rows[: min(MAX_PAIRS, max(1, detail.heat_cells // 400))]]
    stages = [_stage(row) for row in rows_of(summary.get("stages"))[:MAX_PAIRS]]
    failed = [row for row in rows_of(summary.get("parts")) if row.get("status") == "failed"]
    return {
        "matrix": _matrix(rows_of(summary.get("changes")) or rows_of(behaviour.get("changes")), domains, pairs),
        "verdicts": [
            *(prose(text) for text in texts_of(summary.get("verdicts"), 48, 600)),
            *(pair["sentence"] for pair in pairs if pair["found"]),
        ],
        "pairs": pairs,
        "pairs_left_out": len(rows) - len(pairs),
        "modules": _modules(pairs, stages),
        "stages": stages,
        "notes": [prose(text) for text in texts_of(summary.get("notes") or behaviour.get("notes"), 24, 600)],
        "failed": [{"name": clean(row.get("name"), 80), "reason": prose(row.get("reason"), 600)} for row in failed],
    }


def _matrix(rows: list[Row], domains: list[str], pairs: list[Content]) -> Content | None:
    """Domain by stage: the change of the score, and the pairs whose details belong under it."""
    rows = [row for row in rows if estimate(row.get("corrected"))]
    if not rows:
        return None
    stages = list(dict.fromkeys((number(row.get("first_step")), _name(row)) for row in rows))
    by_cell = {(str(row.get("domain")), number(row.get("first_step"))): row for row in rows}
    below: dict[tuple[str, float | None], list[Content]] = {}
    for pair in pairs:
        below.setdefault((pair["earlier"], pair["first_step"]), []).append(pair)
    lines = [
        {
            "domain": clean(name, 60),
            "cells": [_cell(by_cell.get((name, step)), below.get((clean(name, 60), step), [])) for step, _ in stages],
        }
        for name in domains
    ]
    return {"stages": [name for _, name in stages], "rows": lines, "comparisons": len(rows)}


def _name(row: Row) -> str:
    """``while code`` or ``refresh of math``."""
    name = clean(row.get("stage"), 60) or names_of(row.get("during"))
    return name if name.startswith("refresh") else f"while {name}"


def _cell(row: Row | None, pairs: list[Content]) -> Content:
    change = estimate(row.get("corrected")) if row else None
    own = row is not None and row.get("role") == "own"
    return {"change": change, "verdict": clean(row.get("verdict"), 40) if row else "", "own": own, "pairs": pairs}


def _pair(row: Row) -> Content:
    damage, conflict = row_of(row.get("damage")), row_of(row.get("conflict"))
    found = texts_of(row.get("found"), 8, 40)
    return {
        "earlier": clean(row.get("earlier"), 60),
        "later": clean(row.get("later"), 60),
        "together": row.get("together") is True,
        "first_step": number(row.get("first_step")),
        "found": found,
        "sentence": prose(row.get("sentence"), 600),
        "details": [prose(text, 600) for text in texts_of(row.get("details"), 8)],
        "place": clean(row.get("place"), 80) if found else "",
        "damage": _terms(damage),
        "solved": row_of(damage.get("options")).get("surrogate") == "likelihood",
        "damage_modules": {
            clean(part.get("module"), 60): {
                "second": estimate(part.get("second")),
                "edit": number(part.get("edit_share")),
            }
            for part in rows_of(damage.get("modules"))
        },
        "conflict_modules": {
            clean(part.get("module"), 60): {
                key: number(part.get(key)) for key in ("cosine", "floor", "debiased", "verdict")
            }
            for part in rows_of(conflict.get("modules"))
        },
        "edits": _overlap(row.get("edits")),
        "routes": _overlap(row.get("routes")),
    }


def _terms(damage: Row) -> dict[str, dict[str, float] | None] | None:
    terms = {key: estimate(damage.get(key)) for key in TERMS}
    return terms if any(terms.values()) else None


def _overlap(value: object) -> dict[str, float | None] | None:
    keys = ("jaccard", "chance", "p_value")
    return {key: number(value.get(key)) for key in keys} if isinstance(value, dict) else None


def _stage(row: Row) -> Content:
    modules = row_of(row.get("modules")).items()
    return {"stage": clean(row.get("stage"), 60), "modules": {clean(name, 60): number(norm) for name, norm in modules}}


def _modules(pairs: list[Content], stages: list[Content]) -> list[str]:
    """Every module that any map shows, in the order of a forward pass, no more than a page can hold."""
    names = {name for pair in pairs for key in ("damage_modules", "conflict_modules") for name in pair[key]}
    return sorted(names | {name for stage in stages for name in stage["modules"]}, key=layer_key)[:MAX_MODULES]


BARS = {
    "measured": ("measured", "@ink"),
    "first": ("first order", "@p5"),
    "second": ("second order", "@p2"),
    "fisher": ("Fisher", "@p0"),
}


def diagnosis_figures(content: dict[str, Any]) -> dict[str, Figure]:
    """Every figure of the section by its id; a figure without data is left out."""
    pairs, modules = content["pairs"], content["modules"]
    found: dict[str, Figure | None] = {
        "diagnosis-damage": _damage_bars(pairs),
        "diagnosis-conflicts": _conflict_map(pairs, modules),
        "diagnosis-damage-modules": _damage_map([pair for pair in pairs if not pair["together"]], modules),
        "diagnosis-edits": _edit_map([stage for stage in content["stages"] if stage["modules"]], modules),
        "diagnosis-overlap-edits": _overlap_matrix(pairs, "edits"),
        "diagnosis-overlap-routes": _overlap_matrix(pairs, "routes"),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _pair_label(pair: dict[str, Any]) -> str:
    """The edit of the later domain, and the domain that it acts on."""
    between = "·" if pair["together"] else "→"
    later, earlier = plot_text(pair["later"], 20), plot_text(pair["earlier"], 20)
    return f"{later} {between} {earlier}"


def _distinct(labels: Sequence[str]) -> list[str]:
    """Equal labels would share a place on a category axis."""
    return [name if labels.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(labels)]


def _damage_bars(pairs: Sequence[dict[str, Any]]) -> Figure | None:
    pairs = [pair for pair in pairs if pair["damage"]]
    if not pairs:
        return None
    labels = _distinct([_pair_label(pair) for pair in pairs])
    data = [
        bars(labels, [pair["damage"][key] for pair in pairs], name, colour)
        for key, (name, colour) in BARS.items()
        if any(pair["damage"][key] for pair in pairs)
    ]
    return bar_figure(data, "loss per token", 90 + len(pairs) * (20 + 13 * len(data)))


def _conflict_map(pairs: Sequence[dict[str, Any]], modules: Sequence[str]) -> Figure | None:
    """Module by pair: cosine of the two domains' gradients; a dot marks what is beyond noise."""
    cells = [[pair["conflict_modules"].get(name) for pair in pairs] for name in modules]
    values = [[cell["cosine"] if cell else None for cell in row] for row in cells]
    figure = _module_map(pairs, modules, values)
    if figure is None:
        return None
    figure["data"][0] |= _marked([[cell and bool(cell["verdict"]) for cell in row] for row in cells]) | {
        "customdata": [[[(cell or {}).get(key) for key in ("floor", "debiased")] for cell in row] for row in cells],
        "hovertemplate": "%{x}, %{y}<br>cosine %{z:.3f}; noise alone stays within %{customdata[0]:.3f}"
        "<br>without noise about %{customdata[1]:.3f}<extra></extra>",
    }
    return figure


def _damage_map(pairs: Sequence[dict[str, Any]], modules: Sequence[str]) -> Figure | None:
    """Module by pair: second-order damage per token; a dot marks an interval without zero. Red is damage."""
    cells = [[(pair["damage_modules"].get(name) or {}).get("second") for pair in pairs] for name in modules]
    values = [[cell["mean"] if cell else None for cell in row] for row in cells]
    figure = _module_map(pairs, modules, values)
    if figure is None:
        return None
    marks = [[cell and cell["low"] * cell["high"] > 0 for cell in row] for row in cells]
    edits = [[(pair["damage_modules"].get(name) or {}).get("edit") for pair in pairs] for name in modules]
    figure["data"][0] |= _marked(marks) | {
        "colorscale": "@harm",
        "customdata": edits,
        "hovertemplate": "%{x}, %{y}<br>%{z:.3g} per token<br>%{customdata:.0%} of the edit<extra></extra>",
    }
    return figure


def _module_map(
    pairs: Sequence[dict[str, Any]], modules: Sequence[str], values: list[list[float | None]]
) -> Figure | None:
    known = [abs(cell) for row in values for cell in row if cell is not None]
    if not known:
        return None
    labels = labels_of(modules)
    trace = map_of(_distinct([_pair_label(pair) for pair in pairs]), labels, values, max([1e-9, *known]))
    trace["colorbar"] = {**trace["colorbar"], "tickformat": ".2~g"}
    return layout_of([trace], labels, {"type": "category", "tickangle": -35})


def _marked(marks: list[list[bool | None]]) -> Trace:
    """A dot where a cell is beyond noise, a dash where there is no number, which must not look like zero."""
    text = [["\u2013" if mark is None else "\u2022" if mark else "" for mark in row] for row in marks]
    return {"text": text, "texttemplate": "%{text}", "textfont": {"size": 14, "color": "@ink"}}


def _edit_map(edits: Sequence[dict[str, Any]], modules: Sequence[str]) -> Figure | None:
    """Module by stage: norm of the edit over the norm of the weights."""
    values = [[edit["modules"].get(name) for edit in edits] for name in modules]
    kept = [(name, row) for name, row in zip(modules, values, strict=True) if any(cell is not None for cell in row)]
    if not edits or not kept:
        return None
    labels = labels_of([name for name, _ in kept])
    stages = _distinct([plot_text(edit["stage"], 24) for edit in edits])
    trace = map_of(stages, labels, [row for _, row in kept], 1.0)
    limit = max([1e-12, *(cell for _, row in kept for cell in row if cell is not None)])
    trace |= {"zmin": 0, "zmax": limit, "colorscale": "@amount", "hovertemplate": "%{x}, %{y}: %{z:.3%}<extra></extra>"}
    trace.pop("zmid")
    trace["colorbar"] = {**trace["colorbar"], "tickformat": ".1~%"}
    return layout_of([trace], labels, {"type": "category", "tickangle": -35})


def _overlap_matrix(pairs: Sequence[dict[str, Any]], key: str) -> Figure | None:
    """Domain by domain: Jaccard overlap, the level of chance beside it; a dot marks more than chance (p < 0.05)."""
    known = [pair for pair in pairs if pair[key] and pair[key]["jaccard"] is not None]
    if not known:
        return None
    names = list(dict.fromkeys(name for pair in known for name in (pair["earlier"], pair["later"])))
    cells = {frozenset((pair["earlier"], pair["later"])): pair[key] for pair in known}
    grid = [[cells.get(frozenset((a, b))) if a != b else None for b in names] for a in names]
    labels = _distinct([plot_text(name, 20) for name in names])
    trace = map_of(labels, labels, [[cell["jaccard"] if cell else None for cell in row] for row in grid], 1.0)
    trace |= {
        "zmin": 0,
        "colorscale": "@amount",
        "xgap": 1,
        "text": [
            ["" if a == b else _overlap_text(cell) for b, cell in zip(names, row, strict=True)]
            for a, row in zip(names, grid, strict=True)
        ],
        "texttemplate": "%{text}",
        "textfont": {"size": 12, "color": "@ink"},
        "hovertemplate": "%{x}, %{y}: %{text}<extra></extra>",
        "showscale": False,
    }
    for key in ("zmid", "colorbar"):
        trace.pop(key)
    figure = layout_of([trace], labels, {"type": "category"})
    figure["layout"]["margin"] = {"l": 8, "r": 10, "t": 10, "b": 8}
    return figure | {"height": 60 + 48 * len(names)}


def _overlap_text(cell: dict[str, float | None] | None) -> str:
    if not cell or cell["jaccard"] is None:
        return "\u2013"
    chance = "" if cell["chance"] is None else f"<br>({cell['chance']:.2f})"  # two lines fit on a phone
    beyond = cell["p_value"] is not None and cell["p_value"] < 0.05
    return f"{cell['jaccard']:.2f}{' •' if beyond else ''}{chance}"
