"""Figures of scores and curves as plotly JSON. Colours are names like ``@d0`` that the page's script looks up.

Beside plotly's ``data`` and ``layout`` a figure has its ``height`` in pixels and what the script needs to change it:
``narrow`` (what differs on a phone), ``choices`` and ``options`` (what differs by the page's selectors), ``planes``,
``cells``, ``toggle``. ``@d0``, ``@d1``, ... are the domains, ``@p0``, ... pairs, ``@r0``, ... runs; ``@ink``,
``@muted`` and ``@faint`` follow the light or dark theme, ``@d0/0.2`` has that opacity. Texts have gone through
``plot_text``.
"""

import math
from collections.abc import Sequence
from typing import Any

from counterpoint.evaluation.comparison import Comparison
from counterpoint.report.text import plot_text, score
from counterpoint.stats import Estimate

Figure = dict[str, Any]
Trace = dict[str, Any]

SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "cross", "pentagon", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
NUM_COLOURS = 8
"""Domains beyond the eighth repeat the colours with another dash."""


def comparison_figure(comparison: Comparison) -> Figure:
    """Every domain's score in each run or checkpoint, with intervals; one colour and symbol for each."""
    names, domains = comparison.checkpoints, comparison.rows
    gap = 0.6 / len(names)
    data = []
    for place, name in enumerate(names):
        cells = [(index, comparison.cell(name, domain)) for index, domain in enumerate(domains)]
        known = [(index, cell.score) for index, cell in cells if cell is not None]
        heights = [index + (place - (len(names) - 1) / 2) * gap for index, _ in known]
        scores = [{"mean": score.value, **bounds(score)} for _, score in known]
        data.append(dots(scores, heights, plot_text(name), f"@r{place % 6}", SYMBOLS[place % len(SYMBOLS)]))
    figure = score_rows(data, domains, {"showlegend": True})
    figure["height"] = max(figure["height"], 90 + len(domains) * (24 + 20 * len(names)))
    return figure


def bounds(interval: Estimate) -> dict[str, float | None]:
    """``low`` and ``high``, None where the interval has no end."""
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return {"low": interval.low if known else None, "high": interval.high if known else None}


def history_figure(
    over_time: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]], others: Sequence[Sequence[dict[str, Any]]]
) -> Figure:
    """Every evaluation of the run over its steps, with intervals; those of ``others`` as broken lines."""
    data = []
    for number, run in enumerate([over_time, *others]):
        for index, domain in enumerate(run):
            scores, colour = domain["scores"], f"@d{index % NUM_COLOURS}"
            steps = [value["step"] for value in scores]
            trace = course(steps, scores, domain["domain"], colour, line_style(index, 2)) | {"meta": index}
            if number:
                trace |= {"mode": "lines", "line": other_style(index, number)}
                del trace["error_y"]
            data.append(trace)
    layout = {"xaxis": axis("step"), "yaxis": axis("held-out score"), "showlegend": False, **stage_marks(stages)}
    return {"data": data, "layout": layout, "height": 300, "toggle": True}


def curve_figure(
    curves: Sequence[dict[str, Any]],
    stages: Sequence[dict[str, Any]],
    palette: str = "d",
    legend: bool = False,
    others: Sequence[Sequence[dict[str, Any]]] = (),
) -> Figure:
    """Curves over steps, each as a light line (every step) under a firm one (smoothed).

    Those of domains have ``toggle``: the page's chips show and hide them. Of ``others``, the same domains in other
    runs, the smoothed ones are shown as broken lines.
    """
    data: list[Trace] = []
    crowded = len(curves) > 10  # the pointer names a line; a legend of dozens would fill the page
    legend = legend and len(curves) > 1 and not crowded
    for index, curve in enumerate(curves):
        line = line_style(index, 2, palette)
        shared = {"type": "scatter", "mode": "lines", "x": curve["step"], "name": plot_text(curve["name"], 64)}
        # One point makes no line: show it as a dot.
        if len(curve["step"]) == 1:
            shared["mode"] = "markers"
        if not crowded:
            raw = {**shared, "y": curve["value"], "line": {**line, "width": 1, "dash": "solid"}, "opacity": 0.25}
            data.append({**raw, "meta": index, "hoverinfo": "skip", "showlegend": False})
        hover = "step %{x}: %{y:.3g}<extra>%{fullData.name}</extra>"
        data.append({**shared, "y": curve["smooth"], "line": line, "meta": index, "hovertemplate": hover})
    for number, run in enumerate(others, 1):
        data += [
            {
                "type": "scatter", "mode": "lines", "x": curve["step"], "y": curve["smooth"], "meta": index,
                "line": other_style(index, number), "name": plot_text(curve["name"], 64),
                "hovertemplate": "step %{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
            }
            for index, curve in enumerate(run)
        ]  # fmt: skip
    # Down to zero, so that a wobble does not look like a collapse; cosines go below it anyway.
    layout = {"xaxis": axis("step"), "yaxis": {"rangemode": "tozero"}, "showlegend": legend}
    return {
        "data": data,
        "layout": {**layout, **stage_marks(stages)},
        "height": 250 + 20 * legend,
        "toggle": palette == "d",
    }


def with_reference(figure: Figure, value: float) -> Figure:
    """The figure with a thin horizontal line at ``value``, named in the caption."""
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    mark = {**line, "line": {"color": "@muted", "width": 1, "dash": "dot"}}
    layout = figure["layout"]
    return {**figure, "layout": {**layout, "shapes": [*layout.get("shapes", []), mark]}}


def dots(scores: Sequence[dict[str, Any]], heights: Sequence[float], name: str, colour: str, symbol: str) -> Trace:
    """Scores ``mean, low, high`` as marks with horizontal intervals at the given heights."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [value["mean"] for value in scores],
        "y": list(heights),
        "text": [score(value["mean"], value["low"], value["high"]) for value in scores],
        "error_x": error_bars(scores, colour, 1.6),
        "marker": {"color": colour, "size": 10, "symbol": symbol, "line": {"width": 2, "color": colour}},
        "hovertemplate": "%{text}<extra>%{fullData.name}</extra>",
    }


def course(
    steps: Sequence[float], scores: Sequence[dict[str, Any]], name: str, colour: str, line: dict[str, Any]
) -> Trace:
    """Scores ``mean, low, high`` over steps with vertical intervals, joined by a line."""
    trace = dots(scores, [], plot_text(name), colour, "circle")
    return trace | {
        "mode": "lines+markers",
        "x": list(steps),
        "y": [value["mean"] for value in scores],
        "error_y": trace.pop("error_x") | {"thickness": 1},
        "line": line,
        "hovertemplate": "step %{x}: %{text}<extra>%{fullData.name}</extra>",
    }


def error_bars(scores: Sequence[dict[str, Any]], colour: str, thickness: float) -> dict[str, Any]:
    """The intervals of scores ``mean, low, high``; none where one has no ends."""
    bounded = [score["low"] is not None for score in scores]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, s["high"] - s["mean"]) if ok else 0 for s, ok in zip(scores, bounded, strict=True)],
        "arrayminus": [max(0.0, s["mean"] - s["low"]) if ok else 0 for s, ok in zip(scores, bounded, strict=True)],
        "color": colour,
        "thickness": thickness,
        "width": 0,
    }


def bars(labels: Sequence[str], scores: Sequence[dict[str, Any] | None], name: str, colour: str) -> Trace:
    """Scores ``mean, low, high`` as horizontal bars with intervals at their labels."""
    known = [(label, value) for label, value in zip(labels, scores, strict=True) if value]
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [label for label, _ in known],
        "x": [value["mean"] for _, value in known],
        "marker": {"color": colour},
        "error_x": error_bars([value for _, value in known], "@muted", 1.2),
        "hovertemplate": "%{y}: %{x:.3g}<extra>%{fullData.name}</extra>",
    }


def bar_figure(data: list[Trace], unit: str, height: int) -> Figure:
    """Groups of ``bars`` in their order, first at the top, with a line at zero."""
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "xaxis": {**axis(unit), "zeroline": True, "zerolinecolor": "@faint"},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, "ticks": ""},
        "showlegend": True,
    }
    return {"data": data, "layout": layout, "height": height}


def score_range(data: Sequence[Trace]) -> dict[str, Any]:
    """The range of an axis for scores: zero to one where all lie there; empty where plotly should choose."""
    reach = [x for trace in data for x in trace["x"]]
    reach += [
        x + e
        for trace in data
        if "error_x" in trace
        for x, e in zip(trace["x"], trace["error_x"]["array"], strict=True)
    ]
    if not reach or min(reach) < 0 or max(reach) > 1:
        return {}
    return {"range": [-0.01, 1.01 if max(reach) > 0.5 else max(0.1, 1.15 * max(reach))]}


def score_rows(data: list[Trace], names: Sequence[str], layout: dict[str, Any]) -> Figure:
    """A figure of ``dots`` whose rows are ``names``, first at the top."""
    yaxis = {
        "tickvals": list(range(len(names))),
        "ticktext": [plot_text(name, 24) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "ticks": "",
        "tickfont": {"size": 14, "color": "@ink"},
    }
    xaxis = {**axis("score"), **score_range(data)}
    return {"data": data, "layout": {"xaxis": xaxis, "yaxis": yaxis, **layout}, "height": 80 + 52 * len(names)}


def axis(title: str) -> dict[str, Any]:
    """An axis with a title, or without one."""
    return {"title": {"text": title}} if title else {}


def line_style(index: int, width: float, palette: str = "d") -> dict[str, Any]:
    """Colour and dash of the index-th curve of a palette."""
    dash = DASHES[index // NUM_COLOURS % len(DASHES)]
    return {"color": f"@{palette}{index % NUM_COLOURS}", "width": width, "dash": dash}


def other_style(index: int, number: int) -> dict[str, Any]:
    """The same for a domain's curve in the number-th other run."""
    return {"color": f"@d{index % NUM_COLOURS}", "width": 1.5, "dash": DASHES[1 + (number - 1) % 3]}


def stage_marks(stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A thin line where each stage begins, with the stage's domain beside it."""
    begins = [stage for stage in stages if stage["first_step"] is not None] if len(stages) > 1 else []
    shapes = [
        {
            "type": "line",
            "x0": stage["first_step"],
            "x1": stage["first_step"],
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": "@faint", "width": 1, "dash": "dot"},
        }
        for stage in begins
    ]
    labels = [
        {
            "text": plot_text(stage["domain"], 16),
            "x": stage["first_step"],
            "yref": "paper",
            "y": 1.02,
            "xanchor": "left",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 11, "color": "@muted"},
        }
        for stage in begins
    ]
    return {"shapes": shapes, "annotations": labels} if begins else {}
