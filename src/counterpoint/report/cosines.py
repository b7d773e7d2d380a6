"""Cosines between domain gradients, module by module, from the Grams of a run, and their heat maps as plotly JSON.

Legend: S recorded steps, B bins of steps, G modules, D domains, Q pairs of domains.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from counterpoint.report.curves import bin_means, pair_name
from counterpoint.report.plots import Figure
from counterpoint.report.read import Detail, Grams
from counterpoint.report.text import clean, plot_text
from counterpoint.series import series_mean, verdicts

MAX_MODULES = 160
"""Rows a heat map can show. Larger models are shown by layer: Grams of a layer's modules simply add."""


def module_cosines(grams: Grams | None, detail: Detail) -> dict[str, Any] | None:
    """Modules in layer order, domain pairs, and their cosines over steps and averaged over all steps.

    None where no recorded step has two domains, as in a run that trains one after another.
    ``cosine[q][g][b]`` is pair q in module g, averaged over the steps of bin b, from ``step[b]``
    to ``step_end[b]``.
    ``overall[q][g]`` holds the mean over steps, its standard error, the share of steps with a negative cosine, and the
    ``verdict`` that ``diagnose`` gives for the same Grams: -1 conflict, 1 synergy, 0 within noise or not known.
    """
    if grams is None or len(grams.step_S) == 0 or len(grams.domains) < 2 or not grams.groups:
        return None
    groups, gram_SGDD = _in_layer_order(grams)
    pairs = [(i, j) for i in range(len(grams.domains)) for j in range(i + 1, len(grams.domains))]
    shown = pairs[: max(1, detail.heat_cells // (12 * len(groups)))]
    num_bins = min(len(grams.step_S), 120, max(1, detail.heat_cells // (len(shown) * len(groups))))
    cosine_QSG = np.stack([_cosine(gram_SGDD, i, j) for i, j in shown])
    cosine_QGB = np.stack([bin_means(cosine_SG, num_bins, _nanmean).T for cosine_SG in cosine_QSG])
    bins = np.array_split(grams.step_S, num_bins)
    finite = np.isfinite(cosine_QSG)
    if not finite.any():  # one domain after another
        return None
    return {
        "modules": [clean(name, 60) for name in groups],
        "pairs": [pair_name(grams.domains[i], grams.domains[j]) for i, j in shown],
        "pairs_left_out": len(pairs) - len(shown),
        "by_layer": len(groups) < len(grams.groups),
        "step": [int(steps[0]) for steps in bins],
        "step_end": [int(steps[-1]) for steps in bins],
        "recorded_steps": len(grams.step_S),
        "cosine": _nested(cosine_QGB),
        "overall": _overall(cosine_QSG),
        "negative_share": float((cosine_QSG[finite] < 0).mean()),
        "limit": _colour_limit(cosine_QGB),
    }


def layer_key(name: str) -> tuple[int, int, str]:
    """Sorts module names as a forward pass meets them: embedding, layers by number, final norm, ``lm_head``."""
    layer = re.search(r"\d+", name)
    if layer and name.startswith("layer"):
        return (1, int(layer.group()), name)
    ends = {"lm_head": 4, "norm": 2}
    return (0 if "embed" in name else ends.get(name, 3), 0, name)


def _in_layer_order(grams: Grams) -> tuple[list[str], np.ndarray]:
    order = sorted(range(len(grams.groups)), key=lambda index: layer_key(grams.groups[index]))
    groups, gram_SGDD = [grams.groups[index] for index in order], grams.gram_SGDD[:, order]
    if len(groups) <= MAX_MODULES:
        return groups, gram_SGDD
    layers = [".".join(name.split(".")[:2]) if name.startswith("layer") else name for name in groups]
    names = list(dict.fromkeys(layers))
    members = [[index for index, layer in enumerate(layers) if layer == name] for name in names]
    merged_SGDD = np.stack([gram_SGDD[:, member].sum(axis=1) for member in members], axis=1)
    return names[:MAX_MODULES], merged_SGDD[:, :MAX_MODULES]


def _cosine(gram_SGDD: np.ndarray, i: int, j: int) -> np.ndarray:
    """Cosine of domains i and j [S, G]; NaN where either is absent or has no gradient."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosine = gram_SGDD[..., i, j] / np.sqrt(gram_SGDD[..., i, i] * gram_SGDD[..., j, j])
    return np.where(np.isfinite(cosine), np.clip(cosine, -1, 1), np.nan)


def _nanmean(values: np.ndarray, axis: int) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=axis)
    return np.where(counts > 0, np.nansum(values, axis=axis) / np.maximum(counts, 1), np.nan)


def _overall(cosine_QSG: np.ndarray) -> list[list[dict[str, float | None]]]:
    found = [[series_mean(column) for column in cosine_SG.T] for cosine_SG in cosine_QSG]
    marks = iter(verdicts([one for row in found for one in row]))
    return [
        [
            {
                "mean": _rounded(one.mean, 4),
                "standard_error": _rounded(one.standard_error, 4),
                "negative": _negative_share(column),
                "verdict": next(marks),
            }
            for one, column in zip(row, cosine_SG.T, strict=True)
        ]
        for row, cosine_SG in zip(found, cosine_QSG, strict=True)
    ]


def _negative_share(column: np.ndarray) -> float | None:
    known = column[np.isfinite(column)]
    return round(float((known < 0).mean()), 3) if len(known) else None


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None


def _colour_limit(cosine_QGB: np.ndarray) -> float:
    """Where the colours end: wide enough for all but the most extreme 2 % of cells, so that one cell cannot wash out
    the rest, and never so narrow that rounding looks like conflict."""
    finite = np.abs(cosine_QGB[np.isfinite(cosine_QGB)])
    return round(max(0.05, float(np.quantile(finite, 0.98))), 3) if len(finite) else 1.0


def _nested(cosine_QGB: np.ndarray) -> list[list[list[float | None]]]:
    return [
        [[round(value, 3) if np.isfinite(value) else None for value in row] for row in plane]
        for plane in cosine_QGB.tolist()
    ]


def steps_figure(cosines: dict[str, Any]) -> Figure:
    """Module by step for one pair; all are in ``planes``."""
    labels = labels_of(cosines["modules"])
    trace = map_of(cosines["step"], labels, cosines["cosine"][0], cosines["limit"])
    trace["hovertemplate"] = "step %{x}, %{y}<br>cosine %{z:.3f}<extra></extra>"
    figure = layout_of([trace], labels, {"title": {"text": "step"}})
    figure["planes"] = cosines["cosine"]
    return figure


def overview_figure(cosines: dict[str, Any]) -> Figure:
    """Module by pair, averaged over all steps; a dot marks means that noise does not explain."""
    labels, pairs = labels_of(cosines["modules"]), labels_of(cosines["pairs"])
    cells = [[pair[row] for pair in cosines["overall"]] for row in range(len(labels))]
    means = [[cell["mean"] for cell in row] for row in cells]
    # Means over many steps are smaller than the cells they are made of: they get their own scale.
    limit = max([0.01, *(abs(mean) for row in means for mean in row if mean is not None)])
    trace = map_of(pairs, labels, means, limit)
    trace |= {
        "text": [["\u2022" if cell["verdict"] else "" for cell in row] for row in cells],
        "texttemplate": "%{text}",
        "textfont": {"size": 14, "color": "@ink"},
        "customdata": [[[cell["standard_error"], cell["negative"]] for cell in row] for row in cells],
        "hovertemplate": "%{x}, %{y}<br>mean %{z:.4f} \u00b1 %{customdata[0]:.4f} (standard error)"
        "<br>negative in %{customdata[1]:.0%} of steps<extra></extra>",
    }
    return layout_of([trace], labels, {"type": "category", "tickangle": -35})


def map_of(x: Sequence[Any], labels: list[str], cosines: list[list[float | None]], limit: float) -> dict[str, Any]:
    """A heat map of numbers around zero, red below and blue above, whose colours end at ``limit``."""
    return {
        "type": "heatmap",
        "x": list(x),
        "y": labels,
        "z": cosines,
        "zmin": -limit,
        "zmax": limit,
        "zmid": 0,
        "colorscale": "@diverging",
        "xgap": 0,
        "ygap": 1,
        "colorbar": {"thickness": 10, "len": 1, "outlinewidth": 0, "ticks": "", "nticks": 5, "tickformat": ".2~f"},
    }


def layout_of(data: list[dict[str, Any]], labels: list[str], xaxis: dict[str, Any]) -> Figure:
    """A figure of heat maps whose rows are ``labels``, first at the top; cells without a number are grey."""
    yaxis = {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": "", "tickfont": {"size": 11}}
    layout = {"xaxis": {"showgrid": False, "zeroline": False, **xaxis}, "yaxis": yaxis, "showlegend": False}
    layout["plot_bgcolor"] = "@faint"  # what is missing must not look like zero, which is as pale as the page
    layout["margin"] = {"l": 8, "r": 10, "t": 10, "b": 84}  # room for slanted names: the rows of both maps line up
    return {"data": data, "layout": layout, "height": min(900, max(260, 114 + 19 * len(labels)))}


def labels_of(names: Sequence[str]) -> list[str]:
    """Short, distinct axis labels: ``layers.3.attention`` as ``3 attention``; equal ones would share a row."""
    short = [plot_text(name.removeprefix("layers.").replace(".", " "), 34) for name in names]
    return [name if short.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(short)]


MAX_COLUMNS = 48
"""Columns of all blocks together."""

Place = tuple[int | None, str]


def layer_figure(cosines: dict[str, Any]) -> Figure | None:
    """The map with ``cells``: per row and column the pair and the module whose cosine belongs there, or null.

    The page fills it from the planes of the map over steps: the mean over the moments that the slider selects. None
    where no name tells its layer.
    """
    modules, pairs = cosines["modules"], cosines["pairs"]
    places = [_place(name) for name in modules]
    kinds = list(dict.fromkeys(kind for layer, kind in places if layer is not None))
    if not kinds or not cosines["step"]:
        return None
    rows = list(dict.fromkeys(layer if layer is not None else name for (layer, name) in places))
    shown = pairs[: max(1, MAX_COLUMNS // (len(kinds) + 1))]
    columns = [(pair, kind) for pair in range(len(shown)) for kind in [*kinds, None]][:-1]
    index = {place: module for module, place in reversed(list(enumerate(places)))}
    cells = [[_cell(index, row, pair, kind) for pair, kind in columns] for row in rows]
    labels = labels_of([f"layer {row}" if isinstance(row, int) else row for row in rows])
    empty: list[list[float | None]] = [[None] * len(columns) for _ in rows]
    trace = map_of(range(len(columns)), labels, empty, cosines["limit"])
    names = [f"{plot_text(shown[pair], 64)}, {plot_text(kind, 30)}" if kind else "" for pair, kind in columns]
    trace |= {"hovertemplate": "%{text}, %{y}<br>cosine %{z:.3f}<extra></extra>", "text": [names] * len(rows)}
    ticks = [(index, kind) for index, (_, kind) in enumerate(columns) if kind]
    axis = {
        "tickvals": [index for index, _ in ticks],
        "ticktext": [plot_text(kind, 18) for _, kind in ticks],
        "tickangle": -90 if len(ticks) > 4 else 0,
        "range": [-0.5, len(columns) - 0.5],
    }
    figure = layout_of([trace], labels, axis)
    figure["layout"] |= {"annotations": _titles(shown, len(kinds)), "margin": {"l": 8, "r": 10, "t": 84, "b": 8}}
    return figure | {"height": min(900, 190 + 24 * len(rows)), "cells": cells, **_moments(cosines)}


def _moments(cosines: dict[str, Any]) -> dict[str, list[int]]:
    return {"steps": cosines["step"], "ends": cosines["step_end"]}


def _place(name: str) -> Place:
    """Layer and kind of a module: ``layers.3.mlp`` is ``(3, "mlp")``; what lies outside the layers has none."""
    found = re.fullmatch(r"layers?\.(\d{1,6})(?:\.(.+))?", name, re.DOTALL)
    return (int(found[1]), found[2] or "layer") if found else (None, name)


def _cell(index: dict[Place, int], row: int | str, pair: int, kind: str | None) -> list[int] | None:
    """A module of a layer has one column; what lies outside the layers fills all columns of its block."""
    module = index.get((row, kind or "") if isinstance(row, int) else (None, row))
    return None if kind is None or module is None else [pair, module]


def _titles(pairs: Sequence[str], num_kinds: int) -> list[dict[str, Any]]:
    return [
        {
            "text": plot_text(name, 64), "x": pair * (num_kinds + 1), "yref": "paper", "y": 1,
            "xanchor": "left", "yanchor": "bottom", "textangle": -35, "showarrow": False, "yshift": 4, "xshift": -6,
            "font": {"size": 12, "color": "@ink"},
        }
        for pair, name in enumerate(pairs)
    ]  # fmt: skip
