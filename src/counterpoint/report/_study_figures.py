"""Figures of a study as plotly JSON: averages with their seeds, paired differences, Pareto plots, forgetting."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report._figures import NUM_COLOURS, Figure, Trace, axis, dots, score_rows
from counterpoint.report._study import AVERAGE, Content, non_dominated
from counterpoint.report._text import plot_text

KINDS = {
    "base": ("@muted", "circle-open"), "train": ("@d0", "circle"), "experts": ("@d5", "square"),
    "merge": ("@d3", "diamond"), "refresh": ("@d2", "triangle-up"), "rollback": ("@d4", "triangle-down"),
}  # fmt: skip
"""Colour and symbol of every kind of row."""

OTHER = ("@d7", "pentagon")

VERDICTS = {"better": "@high", "worse": "@low"}


def study_figures(content: Content) -> dict[str, Figure]:
    """Every figure of the page by its id; a figure without data is left out."""
    domains = content["domains"]
    # The untouched model lies so far from the others that beside it their differences could not be seen: it is in the
    # tables alone.
    rows = [row for row in content["rows"] if row["kind"] != "base"]
    found: dict[str, Figure | None] = {
        "study-average": _averages(rows, content["reference"]),
        "study-forest-average": _forest(rows, [row["average_difference"] for row in rows]),
        "study-pareto": _pareto(rows, domains),
        "study-cost": _cost(rows),
        "study-forgetting": _bars(rows, domains, "forgetting", "score lost"),
        "study-rigidity": _bars(rows, domains, "rigidity", "score not reached"),
    }
    for index, _ in enumerate(domains):
        found[f"study-forest-{index}"] = _forest(rows, [row["difference"][index] for row in rows])
    return {name: figure for name, figure in found.items() if figure is not None}


def _averages(rows: Sequence[Content], reference: str) -> Figure | None:
    """Every row's average over the domains: each seed a small dot, the mean over seeds with its interval."""
    known = [(index, row["average"]) for index, row in enumerate(rows) if row["average"]]
    if not known:
        return None
    data = [
        {
            "type": "scatter", "mode": "markers", "showlegend": False, "hoverinfo": "x", "opacity": 0.45,
            "x": [value for _, score in known for value in score["by_seed"]],
            "y": [index + 0.2 for index, score in known for _ in score["by_seed"]],
            "marker": {"color": "@muted", "size": 5},
        }
    ]  # fmt: skip
    for kind in dict.fromkeys(rows[index]["kind"] for index, _ in known):
        mine = [(index, score) for index, score in known if rows[index]["kind"] == kind]
        colour, symbol = KINDS.get(kind, OTHER)
        heights = [index - 0.08 for index, _ in mine]
        data.append(dots([score for _, score in mine], heights, plot_text(kind or "other", 30), colour, symbol))
    figure = score_rows(data, [row["name"] for row in rows], {"showlegend": True})
    start = next((score["mean"] for index, score in known if rows[index]["name"] == reference), None)
    figure["layout"]["xaxis"] = axis("score, average over the domains")
    figure["layout"]["yaxis"]["ticktext"] = [plot_text(row["name"], 34) for row in rows]
    return _compact(figure, len(rows), start)


def _compact(figure: Figure, count: int, reference: float | None) -> Figure:
    """Rows closer together, a line at ``reference``."""
    figure["height"] = 96 + 34 * count
    if reference is not None:
        line = {"type": "line", "x0": reference, "x1": reference, "yref": "paper", "y0": 0, "y1": 1}
        figure["layout"]["shapes"] = [
            {**line, "layer": "below", "line": {"color": "@faint", "width": 1, "dash": "dot"}}
        ]
    return figure


def _forest(rows: Sequence[Content], differences: Sequence[Content | None]) -> Figure | None:
    """Paired differences from the reference, with intervals; blue is better, red is worse, grey within noise."""
    known = [(row, value) for row, value in zip(rows, differences, strict=True) if value]
    if not known:
        return None
    data = []
    for verdict in dict.fromkeys(value["verdict"] for _, value in known):
        mine = [(index, value) for index, (_, value) in enumerate(known) if value["verdict"] == verdict]
        trace = dots(
            [value for _, value in mine], [index for index, _ in mine], plot_text(verdict or "no verdict"),
            VERDICTS.get(verdict, "@muted"), "circle",
        )  # fmt: skip
        trace["text"] = [_difference_text(value) for _, value in mine]
        data.append(trace)
    figure = score_rows(data, [row["name"] for row, _ in known], {"showlegend": False})
    figure["layout"]["xaxis"] = axis("difference in score")
    figure["layout"]["yaxis"]["ticktext"] = [plot_text(row["name"], 34) for row, _ in known]
    figure = _compact(figure, len(known), 0.0)
    return figure | {"height": figure["height"] - 30}


def _difference_text(value: Content) -> str:
    interval = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    chance = "" if value["p_corrected"] is None else f"<br>p = {value['p_corrected']:.3g}, corrected"
    return f"{value['mean']:+.3f}{interval}{chance}"


def _pareto(rows: Sequence[Content], domains: Sequence[str]) -> Figure | None:
    """One domain's score against another's; rows that no other beats in both are filled and named.

    ``options`` holds the traces and axes for every choice of two, by the values of the page's two selectors.
    """
    if len(domains) < 2:
        return None
    names = [*domains, AVERAGE]
    scores = [[*row["scores"], row["average"]] for row in rows]
    options = {
        f"{i},{j}": _pareto_option(rows, scores, names, i, j)
        for i in range(len(names))
        for j in range(len(names))
        if i != j
    }
    if not options["0,1"]["data"]:
        return None
    return {"data": [], "layout": {}, "height": 440, "choices": ["pareto-x", "pareto-y"], "options": options}


def _pareto_option(
    rows: Sequence[Content], scores: Sequence[Sequence[Content | None]], names: Sequence[str], i: int, j: int
) -> dict[str, Any]:
    known = [(row, x, y) for row, own in zip(rows, scores, strict=True) if (x := own[i]) and (y := own[j])]
    best = non_dominated([(x["mean"], y["mean"]) for _, x, y in known])
    data = []
    for mark in (False, True):
        mine = [point for point, flag in zip(known, best, strict=True) if flag == mark]
        if mine:
            data.append(_pareto_trace(mine, mark))
    front = sorted((x["mean"], y["mean"]) for (_, x, y), flag in zip(known, best, strict=True) if flag)
    line = {"type": "scatter", "mode": "lines", "x": [x for x, _ in front], "y": [y for _, y in front]}
    data[:0] = [{**line, "line": {"color": "@faint", "width": 1, "shape": "vh"}, "hoverinfo": "skip"}] if front else []
    titles = [axis(f"score, {plot_text(names[k], 40)}") for k in (i, j)]
    return {"data": data, "layout": {"xaxis": titles[0], "yaxis": titles[1], "showlegend": False}}


def _pareto_trace(points: Sequence[tuple[Content, Content, Content]], best: bool) -> Trace:
    looks = [KINDS.get(row["kind"], OTHER) for row, _, _ in points]
    trace = {
        "type": "scatter",
        "mode": "markers+text" if best else "markers",
        "x": [x["mean"] for _, x, _ in points],
        "y": [y["mean"] for _, _, y in points],
        "text": [plot_text(row["name"], 34) for row, _, _ in points],
        "textposition": "top center",
        "textfont": {"color": "@ink", "size": 12},
        "opacity": 1.0 if best else 0.5,
        "cliponaxis": False,
        "marker": {"color": [colour for colour, _ in looks], "symbol": [symbol for _, symbol in looks], "size": 11},
        "hovertemplate": "%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    }
    for key, place in (("error_x", 1), ("error_y", 2)):
        trace[key] = _error([point[place] for point in points])
    return trace


def _error(scores: Sequence[Content]) -> dict[str, Any]:
    bounded = [score["low"] is not None for score in scores]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, s["high"] - s["mean"]) if ok else 0 for s, ok in zip(scores, bounded, strict=True)],
        "arrayminus": [max(0.0, s["mean"] - s["low"]) if ok else 0 for s, ok in zip(scores, bounded, strict=True)],
        "color": "@faint",
        "thickness": 1,
        "width": 0,
    }


def _cost(rows: Sequence[Content]) -> Figure | None:
    """Average score against the time of a seed."""
    known = [
        (row, {"mean": row["cost"]["seconds"] / 60, "low": None, "high": None}, row["average"])
        for row in rows
        if row["average"] and row["cost"]["seconds"] is not None
    ]
    if not known:
        return None
    layout = {
        "xaxis": {**axis("minutes per seed"), "rangemode": "tozero"}, "yaxis": axis("average score"),
        "showlegend": False,
    }  # fmt: skip
    trace = _pareto_trace(known, len(known) <= 8) | {"opacity": 1.0}
    return {"data": [trace], "layout": layout, "height": 360}


def _bars(rows: Sequence[Content], domains: Sequence[str], key: str, unit: str) -> Figure | None:
    known = [row for row in rows if any(row[key])]
    if not known:
        return None
    data = []
    for index, name in enumerate(domains):
        mine = [(place, row[key][index]) for place, row in enumerate(known) if row[key][index]]
        error = _error([score for _, score in mine]) | {"color": "@muted"}
        data.append(
            {
                "type": "bar", "orientation": "h", "name": plot_text(name), "error_x": error,
                "y": [place for place, _ in mine], "x": [score["mean"] for _, score in mine],
                "marker": {"color": f"@d{index % NUM_COLOURS}"},
                "hovertemplate": "%{x:.3f}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    yaxis = {
        "tickvals": list(range(len(known))), "ticktext": [plot_text(row["name"], 34) for row in known],
        "range": [len(known) - 0.5, -0.5], "showgrid": False, "ticks": "", "tickfont": {"color": "@ink"},
    }  # fmt: skip
    xaxis = {**axis(unit), "zeroline": True, "zerolinecolor": "@faint"}
    layout = {"barmode": "group", "bargap": 0.3, "xaxis": xaxis, "yaxis": yaxis, "showlegend": True}
    return {"data": data, "layout": layout, "height": 90 + len(known) * (14 + 9 * len(data))}
