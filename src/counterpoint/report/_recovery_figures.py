"""Figures of a recovery as plotly JSON: what a rollback tried and what came of it, and the course of a refresh."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report._figures import SYMBOLS, Figure, Trace, axis, dots, score_rows
from counterpoint.report._text import plot_text

MEASURED = {
    "before": ("@muted", "circle-open"),
    "after": ("@ink", "circle"),
    "mask": ("@r1", "diamond"),
    "matched": ("@r2", "triangle-up"),
    "uniform": ("@r2", "triangle-down"),
    "pull-back": ("@r3", "square"),
}
"""Colour and symbol of what is measured on the held-out prompts."""

Content = dict[str, Any]


def recovery_figures(content: Content) -> dict[str, Figure]:
    """Every figure of the section by its id; a figure without data is left out."""
    found: dict[str, Figure | None] = {}
    for index, result in enumerate(content["rollback"]):
        found[f"rollback-{index}-search"] = _search(result)
        found[f"rollback-{index}-test"] = _held_out(result)
    for index, result in enumerate(content["refresh"]):
        found[f"refresh-{index}-scores"] = _course(result)
    return {name: figure for name, figure in found.items() if figure is not None}


def _score(scores: Sequence[Content], domain: str) -> float | None:
    return next((row["score"] for row in scores if row["domain"] == domain), None)


def _search(result: Content) -> Figure | None:
    """The damaged domain's score over budgets, one line for each scale, all weights as the last budget."""
    domain, data = result["domain"], []
    known = [item | {"own": _score(item["scores"], domain)} for item in result["tried"]]
    known = [item for item in known if item["own"] is not None and item["scale"] is not None]
    for index, scale in enumerate(sorted({item["scale"] for item in known if item["kind"] == "mask"})):
        points = sorted(
            (item["budget"], item["own"]) for item in known if (item["kind"], item["scale"]) == ("mask", scale)
        )
        trace = _points(points, f"masks moved back {scale:.0%}", "@r1", SYMBOLS[index % len(SYMBOLS)])
        data.append(trace | {"mode": "lines+markers", "line": {"color": "@r1", "width": 1.5 + index}})
    pulled = [(item["budget"], item["own"]) for item in known if item["kind"] == "pull-back"]
    data += [_points(pulled, "all weights, part of the way", "@r3", "square")] if pulled else []
    if not data:
        return None
    budgets = sorted({item["budget"] for item in known})
    level = _score(result["nothing"], domain)
    if level is not None:
        line = _points([(budgets[0], level), (budgets[-1], level)], "nothing moved back", "@muted", "circle")
        data.append(line | {"mode": "lines", "line": {"color": "@muted", "width": 1.5, "dash": "dot"}})
    chosen = [
        (item["budget"], score) for item in result["chosen"] if (score := _score(item["scores"], domain)) is not None
    ]
    data += [_points(chosen, "chosen by the mean over domains", "@ink", "circle-open", 15)] if chosen else []
    ticks = {"tickvals": budgets, "ticktext": [f"{100 * budget:.3g} %" for budget in budgets]}
    x = {**axis("share of all weights moved back"), "type": "log", **(ticks if len(budgets) < 10 else {})}
    layout = {"xaxis": x, "yaxis": axis(plot_text(f"score of {domain}", 60)), "showlegend": True}
    return {"data": data, "layout": layout, "height": 280 + 18 * len(data)}


def _points(points: Sequence[tuple[float, float]], name: str, colour: str, symbol: str, size: int = 8) -> Trace:
    marker: dict[str, Any] = {"color": colour, "size": size, "symbol": symbol}
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in points], "y": [y for _, y in points], "name": name,
        "marker": marker, "hovertemplate": "%{x:.2%}: %{y:.3f}<extra>%{fullData.name}</extra>",
    }  # fmt: skip


def _held_out(result: Content) -> Figure | None:
    """Every domain's score before, after, and with weights moved back, with intervals."""
    series = result["measured"]
    names = list(dict.fromkeys(row["domain"] for item in series for row in item["scores"]))
    if not names:
        return None
    gap, data = 0.7 / len(series), []
    for place, item in enumerate(series):
        known = {row["domain"]: row["score"] for row in item["scores"]}
        heights = [index + (place - (len(series) - 1) / 2) * gap for index, name in enumerate(names) if name in known]
        colour, symbol = MEASURED.get(item["name"], ("@p5", SYMBOLS[4]))
        data.append(
            dots([known[name] for name in names if name in known], heights, plot_text(item["label"]), colour, symbol)
        )
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
        # Points that nobody sees but the axis, which has to reach the band.
        unseen = {"type": "scatter", "mode": "markers", "hoverinfo": "skip", "showlegend": False, "opacity": 0}
        data.append({**unseen, "x": [0, 0], "y": [former["low"], former["high"]]})
    return {"data": data, "layout": layout, "height": 340}
