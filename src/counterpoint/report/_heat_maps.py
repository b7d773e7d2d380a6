"""Heat maps of cosines between domain gradients as plotly JSON: modules by steps, and modules by pairs."""

from collections.abc import Sequence
from typing import Any

from counterpoint.report._figures import Figure
from counterpoint.report._text import plot_text


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
