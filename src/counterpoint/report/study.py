"""The page on a study: what ``study.json`` says, and its figures as plotly JSON.

Planned contrasts have verdicts; every other difference is shown in grey with its interval and has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from counterpoint.errors import CounterpointError, RunError
from counterpoint.report.plots import NUM_COLOURS, Figure, Trace, axis, bar_figure, bars, dots, error_bars, score_rows
from counterpoint.report.read import read_json
from counterpoint.report.text import Content, number, plot_text, prose, score_of
from counterpoint.results import of_plain
from counterpoint.stats import Estimate
from counterpoint.study.results import RowResult, Score, StudyResult
from counterpoint.study.schema import AVERAGE

STUDY = "study.json"
MAX_ROWS = 40
MAX_DOMAINS = 10
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
Mark = tuple[RowResult, Content, Content]
"""A row and where it stands across and up."""


def read_study(folder: Path) -> StudyResult:
    """The result in ``study.json``; an empty one with a note where it is torn or was changed.

    Raises:
        RunError: ``folder`` holds no study.
    """
    path = folder / STUDY
    if not path.is_file():
        raise RunError(f"'{folder}' is no study: it holds no {STUDY}. Pass the folder that study made.")
    notes: list[str] = []
    row = read_json(path, notes)
    try:
        return _cut(of_plain(StudyResult, row))
    except CounterpointError as error:
        notes.append(f"{STUDY} cannot be shown: {error} Make it again with counterpoint study --table.")
    return StudyResult(folder.resolve().name, "", (), (), 0.0, (), (), (), tuple(notes), {}, {}, {})


def _cut(study: StudyResult) -> StudyResult:
    """No more rows and domains than a page can hold, and a note on those left out."""
    rows, domains, notes = study.rows, study.domains, list(study.notes)
    if len(rows) > MAX_ROWS:
        notes.append(f"{len(rows) - MAX_ROWS} of {len(rows)} rows are left out to keep the page readable.")
    if len(domains) > MAX_DOMAINS:
        notes.append(f"{len(domains) - MAX_DOMAINS} of {len(domains)} domains are left out to keep the page readable.")
    return replace(study, rows=rows[:MAX_ROWS], domains=domains[:MAX_DOMAINS], notes=tuple(notes))


def study_content(study: StudyResult) -> Content:
    """What the page's template names."""
    return {
        "study": study,
        "verdicts": [prose(text) for text in study.verdicts],
        "ways": [row for row in study.rows if row.seeds_planned],
        "failed": [row for row in study.rows if row.failed],
        "lowest": [row for row in study.rows if row.worst],
        "compared": [row for row in study.rows if row.difference],
        "made": [row for row in study.rows if row.difference_of],
        "measures": (AVERAGE, *study.domains),
    }


def _plain(estimate: Estimate | None) -> Content | None:
    return None if estimate is None else score_of(vars(estimate))


def _score(row: RowResult, measure: str) -> Content | None:
    found: Score | None = row.scores.get(measure)
    return None if found is None else _plain(found.mean)


def non_dominated(points: list[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as high in both coordinates and higher in one."""
    return [
        not any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]


# Figures


def study_figures(study: StudyResult) -> dict[str, Figure]:
    """Every figure of the page by its id; a figure without data is left out."""
    # The untouched model lies so far from the others that beside it their differences could not be seen: it is in the
    # tables alone.
    rows = [row for row in study.rows if row.kind != "base"]
    planned = [(f"{c.row} - {study.reference}, {c.measure}", _plain(c.change), str(c.verdict)) for c in study.contrasts]
    found: dict[str, Figure | None] = {
        "study-planned": _forest(planned),
        "study-average": _seeds(
            rows, lambda row: row.scores.get(AVERAGE), "score, average over the domains", study.reference
        ),
        "study-lowest": _seeds(
            [row for row in rows if row.worst],
            lambda row: row.worst.score if row.worst else None,
            "score of the lowest domain",
            study.reference if study.starved is None else study.starved,
        ),
        "study-pareto": _pareto(rows, study.domains),
        "study-forgetting": _bars(rows, study.domains, "forgetting", "score lost"),
        "study-rigidity": _bars(rows, study.domains, "rigidity", "score not reached"),
    }
    for measure in (AVERAGE, *study.domains):
        decided = {c.row: str(c.verdict) for c in study.contrasts if c.measure == measure}
        changes = [(row.name, _plain((row.difference or {}).get(measure)), decided.get(row.name, "")) for row in rows]
        place = AVERAGE if measure == AVERAGE else study.domains.index(measure)
        found[f"study-forest-{place}"] = _forest(changes)
    return {name: figure for name, figure in found.items() if figure is not None}


def _seeds(
    rows: Sequence[RowResult], of: Callable[[RowResult], Score | None], label: str, line: float | str
) -> Figure | None:
    """``of`` each row: every seed a small dot, the mean over seeds with its interval.

    ``line``: where a line stands, a number or the name of the row whose mean it is.
    """
    found = [(index, score) for index, row in enumerate(rows) if (score := of(row))]
    known = [(index, mean) for index, score in found if (mean := _plain(score.mean))]
    if not known:
        return None
    seeds = [
        (value, index + 0.2) for index, score in found for seed in score.by_seed if (value := number(seed)) is not None
    ]
    data: list[Trace] = [
        {
            "type": "scatter", "mode": "markers", "showlegend": False, "hoverinfo": "x", "opacity": 0.45,
            "x": [x for x, _ in seeds], "y": [y for _, y in seeds], "marker": {"color": "@muted", "size": 5},
        }
    ]  # fmt: skip
    for kind in dict.fromkeys(rows[index].kind for index, _ in known):
        mine = [(index, score) for index, score in known if rows[index].kind == kind]
        heights = [index - 0.08 for index, _ in mine]
        looks = KINDS.get(kind, OTHER)
        data.append(dots([score for _, score in mine], heights, plot_text(kind or "other", 30), *looks))
    names = [row.name for row in rows]
    figure = score_rows(data, names, {"showlegend": True})
    figure["layout"]["xaxis"] = axis(label)
    at = next((mean["mean"] for index, mean in known if names[index] == line), None) if isinstance(line, str) else line
    return _compact(figure, names, at)


def _compact(figure: Figure, names: Sequence[str], at: float | None) -> Figure:
    """Rows closer together, their names in full, a line at ``at``."""
    figure["height"] = 96 + 34 * len(names)
    figure["layout"]["yaxis"]["ticktext"] = [plot_text(name, 34) for name in names]
    if at is not None:
        line = {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        figure["layout"]["shapes"] = [{**line, "line": {"color": "@faint", "width": 1, "dash": "dot"}}]
    return figure


def _forest(named: Sequence[tuple[str, Content | None, str]]) -> Figure | None:
    """Paired differences from the reference with intervals; only what was planned and decided has a colour."""
    known = [(name, value, verdict) for name, value, verdict in named if value]
    if not known:
        return None
    data = []
    for verdict in dict.fromkeys(verdict for _, _, verdict in known):
        mine = [(index, value) for index, (_, value, own) in enumerate(known) if own == verdict]
        colour = VERDICTS.get(verdict, "@ink" if verdict else "@muted")
        label = plot_text(verdict or "exploratory")
        trace = dots([value for _, value in mine], [index for index, _ in mine], label, colour, "circle")
        trace["text"] = [_change(value) for _, value in mine]
        data.append(trace)
    names = [name for name, _, _ in known]
    figure = score_rows(data, names, {"showlegend": False})
    figure["layout"]["xaxis"] = axis("difference in score")
    figure = _compact(figure, names, 0.0)
    return figure | {"height": figure["height"] - 30}


def _change(value: Content) -> str:
    interval = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"{value['mean']:+.3f}{interval}"


def _pareto(rows: Sequence[RowResult], domains: Sequence[str]) -> Figure | None:
    """One domain's score against another's; rows that no other beats in both are filled and named.

    ``options`` holds the traces and axes for every choice of two, by the values of the page's two selectors.
    """
    names = [*domains, AVERAGE] if len(domains) > 1 else []
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    options = {f"{i},{j}": _pareto_option(rows, names[i], names[j]) for i, j in pairs}
    if not any(option["data"] for option in options.values()):
        return None
    return {"data": [], "layout": {}, "height": 440, "choices": ["pareto-x", "pareto-y"], "options": options}


def _pareto_option(rows: Sequence[RowResult], across: str, up: str) -> dict[str, Any]:
    known = [(row, x, y) for row in rows if (x := _score(row, across)) and (y := _score(row, up))]
    best = non_dominated([(x["mean"], y["mean"]) for _, x, y in known])
    data = []
    for mark in (False, True):
        mine = [point for point, flag in zip(known, best, strict=True) if flag == mark]
        if mine:
            data.append(_marks(mine, mark, (_extent([x for _, x, _ in known]), _extent([y for _, _, y in known]))))
    front = sorted((x["mean"], y["mean"]) for (_, x, y), flag in zip(known, best, strict=True) if flag)
    line = {"type": "scatter", "mode": "lines", "x": [x for x, _ in front], "y": [y for _, y in front]}
    data[:0] = [{**line, "line": {"color": "@faint", "width": 1, "shape": "vh"}, "hoverinfo": "skip"}] if front else []
    titles = [axis(f"score, {plot_text(name, 40)}") for name in (across, up)]
    return {"data": data, "layout": {"xaxis": titles[0], "yaxis": titles[1], "showlegend": False}}


def _extent(scores: Sequence[Content]) -> tuple[float, float]:
    """The lowest and the highest number that an axis shows."""
    shown = [value for score in scores for value in (score["mean"], score["low"], score["high"]) if value is not None]
    return min(shown), max(shown)


def _marks(points: Sequence[Mark], best: bool, extents: Extents) -> Trace:
    looks = [KINDS.get(row.kind, OTHER) for row, _, _ in points]
    places = label_places([(x["mean"], y["mean"], row.name) for row, x, y in points], extents)
    trace = {
        "type": "scatter",
        "mode": "markers+text" if best else "markers",
        "x": [x["mean"] for _, x, _ in points],
        "y": [y["mean"] for _, _, y in points],
        "text": [plot_text(row.name, 34) if place else "" for (row, _, _), place in zip(points, places, strict=True)],
        "hovertext": [plot_text(row.name, 34) for row, _, _ in points],
        "textposition": [place or PLACES[0] for place in places],
        "textfont": {"color": "@ink", "size": 12},
        "opacity": 1.0 if best else 0.5,
        "cliponaxis": False,
        "marker": {"color": [colour for colour, _ in looks], "symbol": [symbol for _, symbol in looks], "size": 11},
        "hovertemplate": "%{hovertext}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
    }
    across, up = [x for _, x, _ in points], [y for _, _, y in points]
    return trace | {"error_x": error_bars(across, "@faint", 1), "error_y": error_bars(up, "@faint", 1)}


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


def _bars(rows: Sequence[RowResult], domains: Sequence[str], key: str, unit: str) -> Figure | None:
    known = [(row, found) for row in rows if (found := getattr(row, key))]
    if not known:
        return None
    names = [plot_text(row.name, 34) for row, _ in known]
    data = [
        bars(names, [_plain(found.get(name)) for _, found in known], plot_text(name), f"@d{index % NUM_COLOURS}")
        for index, name in enumerate(domains)
    ]
    return bar_figure(data, unit, 90 + len(known) * (14 + 9 * len(data)))
