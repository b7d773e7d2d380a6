"""All figures of the page on a run; first among them when every domain was trained and what became of its score."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report._figures import (
    NUM_COLOURS,
    Figure,
    Trace,
    axis,
    comparison_figure,
    curve_figure,
    dots,
    history_figure,
    score_range,
    with_reference,
)
from counterpoint.report._heat_maps import overview_figure, steps_figure
from counterpoint.report._layer_map import layer_figure
from counterpoint.report._recovery_figures import recovery_figures
from counterpoint.report._text import plot_text, signed
from counterpoint.report.diagnosis_figures import diagnosis_figures

ROW_HEIGHT = 52
"""Pixels for a domain."""


def run_figures(content: dict[str, Any]) -> dict[str, Figure]:
    """All figures of the page by their id; a figure without data is left out."""
    stages = content["run"]["stages"]
    found: dict[str, Figure] = {}
    picture = overview_picture(content["run"], content["evaluation"]["rows"])
    if picture:
        found["overview"] = picture
    if content["comparison"]:
        found["comparison"] = comparison_figure(content["comparison"])
    over_time = content["evaluation"]["over_time"]
    if max((len(domain["scores"]) for domain in over_time), default=0) > 2:
        found["history"] = history_figure(over_time, stages, content["evaluation"]["others"])
    if content["diagnosis"]:
        found |= diagnosis_figures(content["diagnosis"])
    if content["recovery"]:
        found |= recovery_figures(content["recovery"])
    for panel in content["curves"]:
        found[f"curve-{panel['metric']}"] = curve_figure(panel["curves"], stages, others=panel["others"])
    return found | _surgery_figures(content, stages)


def _surgery_figures(content: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Figure]:
    surgery, cosines = content["surgery"], content["cosines"]
    found: dict[str, Figure] = {}
    if surgery["conflict_rate"]["step"]:
        found["conflict-rate"] = with_reference(curve_figure([surgery["conflict_rate"]], stages, "p"), 0.5)
    if surgery["removed"]["step"]:
        found["removed"] = curve_figure([surgery["removed"]], stages, "p")
    if surgery["cosine"]:
        found["cosine"] = with_reference(curve_figure(surgery["cosine"], stages, "p", legend=True), 0.0)
    if cosines:
        found["module-overview"] = overview_figure(cosines)
        found["module-steps"] = steps_figure(cosines)
        by_layer = layer_figure(cosines)
        if by_layer:
            found["module-time"] = by_layer
    return found


def overview_picture(run: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Left, each domain's training as bars over the steps, as thick as its share; right, its score before and after.

    Below each other where the page is narrow. ``rows`` are those of ``evaluation``. None where nothing was recorded.
    """
    bars = _bars(run)
    scores = _scores(rows, "2" if bars else "")
    if not bars and not scores:
        return None
    yaxis = {
        "tickvals": list(range(len(rows))), "ticktext": [plot_text(row["domain"], 24) for row in rows],
        "range": [len(rows) - 0.5, -0.5], "showgrid": False, "fixedrange": True, "ticks": "",
        "tickfont": {"size": 14, "color": "@ink"},
    }  # fmt: skip
    training = {**axis("optimizer step"), "rangemode": "tozero"}
    held_out = {**axis("held-out score"), **score_range(scores)}
    figure: Figure = {"data": [*bars, *scores], "height": 80 + ROW_HEIGHT * len(rows)}
    layout: dict[str, Any] = {"barmode": "overlay", "showlegend": False, "yaxis": yaxis}
    if scores:
        layout |= {"annotations": _changes(rows, "y2" if bars else "y"), "margin": {"l": 8, "r": 64, "t": 10, "b": 8}}
    if bars and scores:
        layout["xaxis"] = training | {"domain": [0, 0.36]}
        layout["xaxis2"] = held_out | {"domain": [0.41, 1], "anchor": "y2"}
        layout["yaxis2"] = yaxis | {"anchor": "x2", "showticklabels": False}
        return figure | {"layout": layout, "narrow": _stacked(len(rows))}
    return figure | {"layout": layout | {"xaxis": training if bars else held_out}}


def _stacked(count: int) -> dict[str, Any]:
    """What changes where the page is narrow: the scores above, the training below."""
    top, bottom = ROW_HEIGHT * count, 30 * count
    total = top + bottom + 130
    return {
        "height": total,
        "layout": {
            "xaxis": {"domain": [0, 1]},
            "xaxis2": {"domain": [0, 1]},
            "yaxis": {"domain": [0, bottom / (total - 40)]},
            "yaxis2": {"domain": [1 - top / (total - 40), 1], "showticklabels": True},
        },
    }


def _bars(run: dict[str, Any]) -> list[Trace]:
    """One trace per domain: a bar for each of its stages, or for the whole run where there are none."""
    last = run["steps"]
    if not last:
        return []
    shares = [item["share"] for item in run["domains"]]
    largest = max([share for share in shares if share is not None], default=None)
    data: list[Trace] = []
    for index, (item, share) in enumerate(zip(run["domains"], shares, strict=True)):
        spans = _spans(run, item["domain"])
        staged = _is_staged(run)
        thick = 0.5 if staged or not largest or share is None else max(0.06, 0.5 * share / largest)
        text = "" if staged or share is None else f"{100 * share:.0f} %"
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": plot_text(item["domain"]),
                "base": [first for first, _, _ in spans],
                "x": [end - first for first, end, _ in spans],
                "y": [index] * len(spans),
                "width": thick,
                "text": [text] * len(spans),
                "customdata": [
                    [first + 1, end, "" if kind == "train" else f", {plot_text(kind)}"] for first, end, kind in spans
                ],
                "textposition": "inside",
                "insidetextanchor": "start",
                "constraintext": "none",
                "textangle": 0,
                "textfont": {"color": "@surface", "size": 12},
                "marker": {
                    "color": f"@d{index % NUM_COLOURS}",
                    "opacity": [1.0 if kind == "train" else 0.5 for _, _, kind in spans],
                },
                "hovertemplate": "steps %{customdata[0]} to %{customdata[1]}%{customdata[2]}"
                "<extra>%{fullData.name}</extra>",
            }
        )
    return data


def _is_staged(run: dict[str, Any]) -> bool:
    """Whether not all domains were trained all the time: several stages, or one that left domains out, as a refresh."""
    named = {item["domain"] for item in run["domains"]}
    return len(run["stages"]) > 1 or any(not named <= set(stage["domains"]) for stage in run["stages"])


def _spans(run: dict[str, Any], domain: str) -> list[tuple[float, float, str]]:
    """First and last step and kind of every stage that trained the domain, as far as the run has come."""
    if not _is_staged(run):
        return [(0.0, run["steps"], "train")]
    spans = [
        (stage["first_step"], min(stage["last_step"] or run["steps"], run["steps"]), stage["kind"])
        for stage in run["stages"]
        if domain in stage["domains"] and stage["first_step"] is not None
    ]
    return [span for span in spans if span[1] > span[0]]


def _scores(rows: Sequence[dict[str, Any]], axes: str) -> list[Trace]:
    """Every domain's score before (ring) and after (dot) with intervals, on the axes of that number."""
    data: list[Trace] = []
    for index, row in enumerate(rows):
        colour = f"@d{index % NUM_COLOURS}"
        if row["before"] and row["after"]:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [row["before"]["mean"], row["after"]["mean"]],
                    "y": [index - 0.12, index + 0.12],
                    "line": {"color": "@faint", "width": 1.5},
                    "hoverinfo": "skip",
                }
            )
        for when, offset, symbol in (("before", -0.12, "circle-open"), ("after", 0.12, "circle")):
            if row[when]:
                data.append(dots([row[when]], [index + offset], f"{plot_text(row['domain'])}, {when}", colour, symbol))
    return [trace | {"xaxis": f"x{axes}", "yaxis": f"y{axes}"} for trace in data]


def _changes(rows: Sequence[dict[str, Any]], yref: str) -> list[dict[str, Any]]:
    """The change of every score at the right edge."""
    return [
        {
            "text": signed(row["change"]), "xref": "paper", "x": 1, "xanchor": "left", "xshift": 12, "yref": yref,
            "y": index, "showarrow": False, "font": {"size": 14, "color": "@ink"},
        }
        for index, row in enumerate(rows)
        if row["change"] is not None
    ]  # fmt: skip
