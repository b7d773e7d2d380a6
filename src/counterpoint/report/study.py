"""The page on a study: what ``study.json`` says, cleaned, and its figures as plotly JSON.

Planned contrasts have verdicts; every other difference is shown in grey with its interval and has none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.report.plots import NUM_COLOURS, Figure, Trace, axis, dots, error_bars, score_rows
from counterpoint.report.read import read_json
from counterpoint.report.text import (
    Content,
    Row,
    clean,
    list_of,
    number,
    numbers_of,
    plot_text,
    prose,
    row_of,
    rows_of,
    score_of,
    texts_of,
)

STUDY = "study.json"
MAX_ROWS = 40
MAX_DOMAINS = 10
MAX_SEEDS = 50
MAX_CONTRASTS = 20
AVERAGE = "average"
ONCE = ("base", "given")
"""Kinds of rows that may be one model for all seeds."""
KINDS = {
    "base": ("@muted", "circle-open"), "train": ("@d0", "circle"), "experts": ("@d5", "square"),
    "merge": ("@d3", "diamond"), "refresh": ("@d2", "triangle-up"), "rollback": ("@d4", "triangle-down"),
    "given": ("@d1", "star"),
}  # fmt: skip
"""Colour and symbol of every kind of row."""
OTHER = ("@d7", "pentagon")
VERDICTS = {"better": "@high", "worse": "@low"}
PLACES = ("top center", "bottom center", "middle right", "middle left")

Extents = tuple[tuple[float, float], tuple[float, float]]
"""Lowest and highest number of a plot's two axes."""


def read_study(folder: Path) -> tuple[Row, list[str]]:
    """The object in ``study.json``, empty where it is torn, and notes on what could not be read.

    Raises:
        RunError: ``folder`` holds no study.
    """
    path = folder / STUDY
    if not path.is_file():
        raise RunError(f"'{folder}' is no study: it holds no {STUDY}. Pass the folder that study made.")
    notes: list[str] = []
    return read_json(path, notes), notes


def study_content(row: Row, folder: str, notes: list[str]) -> Content:
    """The content of the page on a study as plain JSON values with cleaned texts."""
    names = [str(name) for name in list_of(row.get("domains"))]
    rows, domains = rows_of(row.get("rows")), names[:MAX_DOMAINS]
    contrasts = rows_of(row.get("contrasts"))[:MAX_CONTRASTS]
    notes = [*notes, *texts_of(row.get("notes"), 48)]
    if len(rows) > MAX_ROWS:
        notes.append(f"{len(rows) - MAX_ROWS} of {len(rows)} rows are left out to keep the page readable.")
    if len(names) > MAX_DOMAINS:
        notes.append(f"{len(names) - MAX_DOMAINS} of {len(names)} domains are left out to keep the page readable.")
    return {
        "name": clean(row.get("name"), 80) or clean(folder, 80),
        "reference": clean(row.get("reference"), 60),
        "seeds": [clean(seed, 20) for seed in list_of(row.get("seeds"))[:MAX_SEEDS]],
        "domains": [clean(name, 60) for name in domains],
        "worth": number(row.get("worth")),
        "verdicts": [prose(text) for text in texts_of(row.get("verdicts"), MAX_CONTRASTS)],
        "contrasts": [_contrast(item) for item in contrasts],
        "settings": _facts(row.get("settings")),
        "rows": [_row(item, domains, contrasts) for item in rows[:MAX_ROWS]],
        "notes": notes,
        "environment": _facts(row.get("environment")),
    }


def _contrast(row: Row) -> Content:
    return {
        "row": clean(row.get("row"), 60),
        "measure": clean(row.get("measure"), 60),
        "change": score_of(row.get("change")),
        "verdict": clean(row.get("verdict"), 40),
        **numbers_of(row, ("p", "p_corrected", "spread", "power", "seeds_needed")),
    }


def _facts(value: object) -> dict[str, str]:
    """Short facts by name; a list of sentences becomes numbered ones."""
    if isinstance(value, list):
        return {str(index + 1): clean(item, 1000) for index, item in enumerate(value[:60])}
    known = {key: item for key, item in list(row_of(value).items())[:60] if item is not None}
    return {clean(key, 60): clean(_fact(item), 1000) for key, item in known.items()}


def _fact(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value


def _row(row: Row, domains: list[str], contrasts: Sequence[Row]) -> Content:
    measures = [*domains, AVERAGE]
    scores, planned = row_of(row.get("scores")), number(row.get("seeds_planned"))
    kind = clean(row.get("kind"), 30)
    failed = [
        {"seed": clean(item.get("seed"), 20), "reason": clean(item.get("reason"), 600)}
        for item in rows_of(row.get("failed"))[:MAX_SEEDS]
    ]
    decided = {
        str(item.get("measure")): clean(item.get("verdict"), 40)
        for item in contrasts
        if item.get("row") == row.get("name")
    }
    difference = _changes(row.get("difference"), measures, decided)
    difference_of = _changes(row.get("difference_of"), measures, {})
    return {
        "name": clean(row.get("name"), 60),
        "kind": kind,
        "once": kind in ONCE and not planned,
        "description": clean(row.get("description"), 400),
        "seeds_done": len(list_of(row.get("seeds_done"))),
        "seeds_planned": int(planned or 0),
        "failed": failed,
        "scores": [_score(scores.get(name)) for name in measures],
        "difference": difference,
        "compared": any(difference),
        "of": clean(row.get("of"), 60) if row.get("of") is not None else "",
        "difference_of": difference_of,
        "made": any(difference_of),
        **{key: [score_of(row_of(row.get(key)).get(name)) for name in domains] for key in ("forgetting", "rigidity")},
        "cost": numbers_of(row_of(row.get("cost")), ("steps", "tokens", "seconds")),
    }


def _score(value: object) -> Content | None:
    found = score_of(row_of(value).get("mean"))
    if found is None:
        return None
    seeds = [number(item) for item in list_of(row_of(value).get("by_seed"))[:MAX_SEEDS]]
    return {**found, "by_seed": [item for item in seeds if item is not None]}


def _changes(value: object, measures: Sequence[str], decided: dict[str, str]) -> list[Content | None]:
    """A difference of every measure; ``verdict`` is empty where it was not planned."""
    found = [(name, score_of(row_of(value).get(name))) for name in measures]
    return [None if change is None else {**change, "verdict": decided.get(name, "")} for name, change in found]


def non_dominated(points: list[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as high in both coordinates and higher in one."""
    return [
        not any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


# Figures


def study_figures(content: Content) -> dict[str, Figure]:
    """Every figure of the page by its id; a figure without data is left out."""
    domains, reference = content["domains"], content["reference"]
    # The untouched model lies so far from the others that beside it their differences could not be seen: it is in the
    # tables alone.
    rows = [row for row in content["rows"] if row["kind"] != "base"]
    planned = [({"name": f"{c['row']} - {reference}, {c['measure']}"}, _named(c)) for c in content["contrasts"]]
    found: dict[str, Figure | None] = {
        "study-planned": _forest(planned),
        "study-average": _averages(rows, reference),
        "study-forest-average": _forest([(row, row["difference"][-1]) for row in rows]),
        "study-pareto": _pareto(rows, domains),
        "study-cost": _cost(rows),
        "study-forgetting": _bars(rows, domains, "forgetting", "score lost"),
        "study-rigidity": _bars(rows, domains, "rigidity", "score not reached"),
    }
    for index, _ in enumerate(domains):
        found[f"study-forest-{index}"] = _forest([(row, row["difference"][index]) for row in rows])
    return {name: figure for name, figure in found.items() if figure is not None}


def _named(contrast: Content) -> Content | None:
    return contrast["change"] and {**contrast["change"], "verdict": contrast["verdict"]}


def _averages(rows: Sequence[Content], reference: str) -> Figure | None:
    """Every row's average over the domains: each seed a small dot, the mean over seeds with its interval."""
    known = [(index, row["scores"][-1]) for index, row in enumerate(rows) if row["scores"][-1]]
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
    return _compact(figure, [row["name"] for row in rows], start)


def _compact(figure: Figure, names: Sequence[str], at: float | None) -> Figure:
    """Rows closer together, their names in full, a line at ``at``."""
    figure["height"] = 96 + 34 * len(names)
    figure["layout"]["yaxis"]["ticktext"] = [plot_text(name, 34) for name in names]
    if at is not None:
        line = {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        figure["layout"]["shapes"] = [{**line, "line": {"color": "@faint", "width": 1, "dash": "dot"}}]
    return figure


def _forest(named: Sequence[tuple[Content, Content | None]]) -> Figure | None:
    """Paired differences from the reference with intervals; only what was planned and decided has a colour."""
    known = [(row, value) for row, value in named if value]
    if not known:
        return None
    data = []
    for verdict in dict.fromkeys(value["verdict"] for _, value in known):
        mine = [(index, value) for index, (_, value) in enumerate(known) if value["verdict"] == verdict]
        colour = VERDICTS.get(verdict, "@ink" if verdict else "@muted")
        label = plot_text(verdict or "exploratory")
        trace = dots([value for _, value in mine], [index for index, _ in mine], label, colour, "circle")
        trace["text"] = [_change(value) for _, value in mine]
        data.append(trace)
    names = [row["name"] for row, _ in known]
    figure = score_rows(data, names, {"showlegend": False})
    figure["layout"]["xaxis"] = axis("difference in score")
    figure = _compact(figure, names, 0.0)
    return figure | {"height": figure["height"] - 30}


def _change(value: Content) -> str:
    interval = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"{value['mean']:+.3f}{interval}"


def _pareto(rows: Sequence[Content], domains: Sequence[str]) -> Figure | None:
    """One domain's score against another's; rows that no other beats in both are filled and named.

    ``options`` holds the traces and axes for every choice of two, by the values of the page's two selectors.
    """
    if len(domains) < 2:
        return None
    names = [*domains, AVERAGE]
    options = {
        f"{i},{j}": _pareto_option(rows, names, i, j) for i in range(len(names)) for j in range(len(names)) if i != j
    }
    if not any(option["data"] for option in options.values()):
        return None
    return {"data": [], "layout": {}, "height": 440, "choices": ["pareto-x", "pareto-y"], "options": options}


def _pareto_option(rows: Sequence[Content], names: Sequence[str], i: int, j: int) -> dict[str, Any]:
    known = [(row, x, y) for row in rows if (x := row["scores"][i]) and (y := row["scores"][j])]
    best = non_dominated([(x["mean"], y["mean"]) for _, x, y in known])
    data = []
    for mark in (False, True):
        mine = [point for point, flag in zip(known, best, strict=True) if flag == mark]
        if mine:
            data.append(_marks(mine, mark, (_extent([x for _, x, _ in known]), _extent([y for _, _, y in known]))))
    front = sorted((x["mean"], y["mean"]) for (_, x, y), flag in zip(known, best, strict=True) if flag)
    line = {"type": "scatter", "mode": "lines", "x": [x for x, _ in front], "y": [y for _, y in front]}
    data[:0] = [{**line, "line": {"color": "@faint", "width": 1, "shape": "vh"}, "hoverinfo": "skip"}] if front else []
    titles = [axis(f"score, {plot_text(names[k], 40)}") for k in (i, j)]
    return {"data": data, "layout": {"xaxis": titles[0], "yaxis": titles[1], "showlegend": False}}


def _extent(scores: Sequence[Content]) -> tuple[float, float]:
    """The lowest and the highest number that an axis shows."""
    shown = [value for score in scores for value in (score["mean"], score["low"], score["high"]) if value is not None]
    return min(shown), max(shown)


def _marks(points: Sequence[tuple[Content, Content, Content]], best: bool, extents: Extents) -> Trace:
    looks = [KINDS.get(row["kind"], OTHER) for row, _, _ in points]
    places = label_places([(x["mean"], y["mean"], row["name"]) for row, x, y in points], extents)
    trace = {
        "type": "scatter",
        "mode": "markers+text" if best else "markers",
        "x": [x["mean"] for _, x, _ in points],
        "y": [y["mean"] for _, _, y in points],
        "text": [
            plot_text(row["name"], 34) if place else "" for (row, _, _), place in zip(points, places, strict=True)
        ],
        "hovertext": [plot_text(row["name"], 34) for row, _, _ in points],
        "textposition": [place or PLACES[0] for place in places],
        "textfont": {"color": "@ink", "size": 12},
        "opacity": 1.0 if best else 0.5,
        "cliponaxis": False,
        "marker": {"color": [colour for colour, _ in looks], "symbol": [symbol for _, symbol in looks], "size": 11},
        "hovertemplate": "%{hovertext}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    }
    for key, place in (("error_x", 1), ("error_y", 2)):
        trace[key] = error_bars([point[place] for point in points], "@faint", 1)
    return trace


def label_places(points: Sequence[tuple[float, float, str]], extents: Extents) -> list[str]:
    """Where the name of each point ``x, y, name`` goes so that no two names overlap; empty where there is no room.

    The names are measured for a plot of a phone's width, about 300 pixels wide and high.
    """
    (left, right), (bottom, top) = extents
    width, height = right - left or 1.0, top - bottom or 1.0
    marks = [((x - left) / width, (y - bottom) / height, name) for x, y, name in points]
    taken: list[tuple[float, float, float, float]] = []
    found = []
    for x, y, name in marks:
        wide, high, gap = min(0.024 * len(name), 0.8), 0.055, 0.03
        boxes = {
            "top center": (x - wide / 2, y + gap, x + wide / 2, y + gap + high),
            "bottom center": (x - wide / 2, y - gap - high, x + wide / 2, y - gap),
            "middle right": (x + gap, y - high / 2, x + gap + wide, y + high / 2),
            "middle left": (x - gap - wide, y - high / 2, x - gap, y + high / 2),
        }
        place = next((place for place in PLACES if not any(_overlap(boxes[place], box) for box in taken)), "")
        taken += [boxes[place]] if place else []
        found.append(place)
    return found


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cost(rows: Sequence[Content]) -> Figure | None:
    """Average score against the time of a seed."""
    known = [
        (row, {"mean": row["cost"]["seconds"] / 60, "low": None, "high": None}, row["scores"][-1])
        for row in rows
        if row["scores"][-1] and row["cost"]["seconds"] is not None
    ]
    if not known:
        return None
    layout = {
        "xaxis": {**axis("minutes per seed"), "rangemode": "tozero"}, "yaxis": axis("average score"),
        "showlegend": False,
    }  # fmt: skip
    extents = (0.0, _extent([x for _, x, _ in known])[1]), _extent([y for _, _, y in known])
    trace = _marks(known, len(known) <= 8, extents) | {"opacity": 1.0}
    return {"data": [trace], "layout": layout, "height": 360}


def _bars(rows: Sequence[Content], domains: Sequence[str], key: str, unit: str) -> Figure | None:
    known = [row for row in rows if any(row[key])]
    if not known:
        return None
    data = []
    for index, name in enumerate(domains):
        mine = [(place, row[key][index]) for place, row in enumerate(known) if row[key][index]]
        error = error_bars([score for _, score in mine], "@muted", 1)
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
