"""Layer by kind of module at one moment of training, a block per pair of domains; a slider moves the moment."""

import re
from collections.abc import Sequence
from typing import Any

from counterpoint.report._figures import Figure
from counterpoint.report._heat_maps import labels_of, layout_of, map_of
from counterpoint.report._text import plot_text

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
