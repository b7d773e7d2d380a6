"""Figures of a recovery as plotly JSON: budgets of a rollback beside chance, and the course of a refresh."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from counterpoint.report._figures import SYMBOLS, Figure, Trace, axis, dots, score_rows
from counterpoint.report._text import plot_text

REPORTED = {"before": ("@muted", "circle-open"), "after": ("@ink", "circle"), "rollback": ("@r1", "diamond")}
"""Colour and symbol of what is reported on the test split; masks drawn at random share another."""

RANDOM = ("@r2", "triangle-up")

Content = dict[str, Any]


def recovery_figures(content: Content) -> dict[str, Figure]:
    """Every figure of the section by its id; a figure without data is left out."""
    found: dict[str, Figure | None] = {}
    for index, result in enumerate(content["rollback"]):
        found[f"rollback-{index}-budget"] = _budgets(result)
        found[f"rollback-{index}-others"] = _others(result)
        found[f"rollback-{index}-test"] = _test_split(result)
    for index, result in enumerate(content["refresh"]):
        found[f"refresh-{index}-scores"] = _course(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def _score(item: Content, domain: str) -> float | None:
    return next((row["score"] for row in item["scores"] if row["domain"] == domain), None)


def _shown_scale(result: Content) -> float | None:
    """The scale that the curves show: the chosen one, or the largest tried."""
    scales = [item["scale"] for item in result["tried"] if item["scale"] is not None]
    chosen = (result["chosen"] or {}).get("scale")
    return chosen if chosen in scales else max(scales, default=None)


def _points(result: Content, kind: str, scale: float | None, domain: str) -> list[tuple[float, list[float]]]:
    """Every budget with the scores of its masks, smallest first."""
    known = [
        (item["budget"], score)
        for item in result["tried"]
        if item["kind"] == kind and item["scale"] == scale and (score := _score(item, domain)) is not None
    ]
    known.sort()
    return [(budget, [score for _, score in items]) for budget, items in groupby(known, key=lambda point: point[0])]


def _budget_axis(result: Content) -> dict[str, Any]:
    budgets = sorted({item["budget"] for item in result["tried"]})
    ticks = {"tickvals": budgets, "ticktext": [f"{100 * budget:.3g} %" for budget in budgets]}
    return {**axis("budget, share of all weights"), "type": "log", **(ticks if len(budgets) < 10 else {})}


def _budgets(result: Content) -> Figure | None:
    """The damaged domain's score over budgets: rollback at every scale, and random masks of the same size."""
    domain, shown = result["domain"], _shown_scale(result)
    scales = sorted({item["scale"] for item in result["tried"] if item["scale"] is not None})
    data = _random_band(_points(result, "random", shown, domain))
    for scale in scales:
        points = _points(result, "rollback", scale, domain)
        name = f"rollback, scale {scale:.3g}" if len(scales) > 1 else "rollback"
        data += _line(points, max, name, "@r1", 2.5 if scale == shown else 1, 1.0 if scale == shown else 0.45)
    if not data:
        return None
    data += [*_untouched(result, domain), *_chosen_mark(result, domain)]
    layout = {"xaxis": _budget_axis(result), "yaxis": axis(plot_text(f"score of {domain}", 60)), "showlegend": True}
    return {"data": data, "layout": layout, "height": 280 + 18 * len(data)}


def _untouched(result: Content, domain: str) -> list[Trace]:
    """The score with nothing restored, as a line across."""
    level = _score({"scores": result["untouched"]}, domain)
    if level is None:
        return []
    budgets = sorted({item["budget"] for item in result["tried"]})
    return [
        {
            "type": "scatter", "mode": "lines", "x": [budgets[0], budgets[-1]], "y": [level, level],
            "name": "nothing restored", "line": {"color": "@muted", "width": 1.5, "dash": "dot"}, "hoverinfo": "y+name",
        }
    ]  # fmt: skip


def _line(
    points: Sequence[tuple[float, list[float]]], of: Callable[[list[float]], float], name: str, colour: str,
    width: float, opacity: float = 1.0,
) -> list[Trace]:  # fmt: skip
    if not points:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [budget for budget, _ in points],
            "y": [of(scores) for _, scores in points],
            "name": name,
            "line": {"color": colour, "width": width},
            "marker": {"color": colour, "size": 4 + 2 * width},
            "opacity": opacity,
            "hovertemplate": "%{x:.2%}: %{y:.3f}<extra>%{fullData.name}</extra>",
        }
    ]


def _random_band(points: Sequence[tuple[float, list[float]]]) -> list[Trace]:
    """The mean of the random masks, in a band from the worst to the best of them."""
    if not points:
        return []
    edge: Trace = {"type": "scatter", "mode": "lines", "x": [budget for budget, _ in points], "hoverinfo": "skip"}
    edge |= {"line": {"width": 0, "color": "@r2"}, "showlegend": False}
    band = [
        {**edge, "y": [min(scores) for _, scores in points]},
        {**edge, "y": [max(scores) for _, scores in points], "fill": "tonexty", "fillcolor": "@r2/0.2"},
    ]
    return [*band, *_line(points, _mean, "random masks of the same size", "@r2", 1.5)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _chosen_mark(result: Content, domain: str) -> list[Trace]:
    chosen = result["chosen"] or {}
    points = _points(result, "rollback", chosen.get("scale"), domain) if chosen else []
    found = [(budget, max(scores)) for budget, scores in points if budget == chosen.get("budget")]
    return [
        {
            "type": "scatter", "mode": "markers", "x": [budget], "y": [score], "name": "chosen",
            "marker": {"color": "@ink", "size": 15, "symbol": "circle-open", "line": {"width": 2, "color": "@ink"}},
            "hovertemplate": "chosen: %{x:.2%}, %{y:.3f}<extra></extra>",
        }
        for budget, score in found
    ]  # fmt: skip


def _others(result: Content) -> Figure | None:
    """What the rollback does to the other domains, at the scale shown."""
    shown, data = _shown_scale(result), []
    names = {row["domain"]: row["colour"] for item in result["tried"] for row in item["scores"]}
    for name, colour in names.items():
        if name != result["domain"]:
            data += _line(_points(result, "rollback", shown, name), max, plot_text(name), f"@d{colour}", 2)
    layout = {"xaxis": _budget_axis(result), "yaxis": {**axis("score"), "rangemode": "tozero"}, "showlegend": True}
    return {"data": data, "layout": layout, "height": 340} if data else None


def _test_split(result: Content) -> Figure | None:
    """Every domain's score before, after, after the rollback, and under random masks, with intervals."""
    series = result["reported"]
    names = list(dict.fromkeys(row["domain"] for item in series for row in item["scores"]))
    if not names:
        return None
    gap, data, seen = 0.7 / len(series), [], set()
    for place, item in enumerate(series):
        known = {row["domain"]: row["score"] for row in item["scores"]}
        heights = [index + (place - (len(series) - 1) / 2) * gap for index, name in enumerate(names) if name in known]
        colour, symbol = REPORTED.get(item["name"], RANDOM if item["name"] == "random" else ("@p5", SYMBOLS[4]))
        label = "random masks" if item["name"] == "random" else plot_text(item["name"])
        trace = dots([known[name] for name in names if name in known], heights, label, colour, symbol)
        data.append(trace | {"legendgroup": label, "showlegend": label not in seen})
        seen.add(label)
    figure = score_rows(data, names, {"showlegend": True})
    return figure | {"height": 90 + len(names) * max(52, 24 + 16 * len(series))}


def _course(result: Content) -> Figure | None:
    """Scores of all domains over the steps of a refresh; the former interval of the damaged one as a band."""
    moments = result["evaluations"]
    names = {row["domain"]: row["colour"] for moment in moments for row in moment["scores"]}
    data = []
    for name, colour in names.items():
        known = [(m["step"], row["score"]) for m in moments for row in m["scores"] if row["domain"] == name]
        trace = dots([score for _, score in known], [], plot_text(name), f"@d{colour}", "circle")
        trace |= {
            "mode": "lines+markers",
            "x": [step for step, _ in known],
            "y": [score["mean"] for _, score in known],
            "error_y": trace.pop("error_x") | {"thickness": 1},
            "line": {"color": f"@d{colour}", "width": 3 if name == result["domain"] else 1.5},
            "hovertemplate": "step %{x}: %{text}<extra>%{fullData.name}</extra>",
        }
        data.append(trace)
    if not data:
        return None
    layout: dict[str, Any] = {"xaxis": axis("step of the refresh"), "yaxis": axis("held-out score"), "showlegend": True}
    former = result["former"]
    if former and former["low"] is not None:
        band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": former["low"], "y1": former["high"]}
        colour = f"@d{result['colour']}"
        layout["shapes"] = [{**band, "fillcolor": f"{colour}/0.14", "line": {"width": 0}, "layer": "below"}]
        data.append(_invisible([former["low"], former["high"]]))
    return {"data": data, "layout": layout, "height": 340}


def _invisible(heights: Sequence[float]) -> Trace:
    """Points that nobody sees but the axis, which has to reach the band."""
    shared = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "showlegend": False, "opacity": 0}
    return {**shared, "x": [0] * len(heights), "y": list(heights)}
