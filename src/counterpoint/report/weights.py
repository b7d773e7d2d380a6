"""Who trains the model: each domain's share of prompts, tokens, signal, weight, gradient and update."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report.plots import NUM_COLOURS, Figure, Trace
from counterpoint.report.read import RunData
from counterpoint.report.text import clean, number, plot_text
from counterpoint.runs.weights import WEIGHTS, mean_weights


def weights(run: RunData, domains: Sequence[str]) -> list[dict[str, Any]]:
    """For everything that is shared, the mean share of each domain over the run's steps; None where it is not known."""
    keys = {f"{kind}/{name}" for kind in WEIGHTS for name in domains}
    lines = [{key: number(row[key]) for key in keys & row.keys()} for row in run.metrics]
    return [
        {"what": what, "shares": [{"domain": clean(name, 60), "share": shares.get(name)} for name in domains]}
        for what, shares in mean_weights(lines).items()
    ]


def weights_figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """One bar for everything that is shared, from the prompts at the top to the update, cut by domain."""
    data: list[Trace] = []
    for index, item in enumerate(rows[0]["shares"]):
        shares = [row["shares"][index]["share"] for row in rows]
        data.append(
            {
                "type": "bar", "orientation": "h", "name": plot_text(item["domain"]), "meta": index,
                "y": [row["what"] for row in rows], "x": shares,
                "text": [f"{100 * share:.0f}" if share is not None and share >= 0.05 else "" for share in shares],
                "textposition": "inside", "insidetextanchor": "middle", "textangle": 0,
                "textfont": {"color": "@surface", "size": 12},
                "marker": {"color": f"@d{index % NUM_COLOURS}"},
                "hovertemplate": "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
    layout = {
        "barmode": "relative",  # a domain that the update goes against has a negative part
        "bargap": 0.25,
        "xaxis": {"tickformat": ".0%", "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "showgrid": False, "ticks": "", "automargin": True, "fixedrange": True},
        "showlegend": False,
    }
    return {"data": data, "layout": layout, "height": 70 + 30 * len(rows), "toggle": True}
