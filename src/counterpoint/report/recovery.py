"""What ``recovery/*.json`` say, cleaned, and its figures: what fell, what was tried, what came back, what it cost.

A file names its form in ``schema``; one without is taken for what its name says.
"""

from collections.abc import Sequence
from typing import Any

from counterpoint.report.plots import SYMBOLS, Figure, Trace, axis, course, dots, score_rows
from counterpoint.report.read import Detail, RunData
from counterpoint.report.text import (
    Content,
    Row,
    clean,
    number,
    numbers_of,
    plot_text,
    row_of,
    rows_of,
    score_of,
    texts_of,
)

KINDS = ("recover", "rollback", "refresh")

MAX_SHOWN = 6
"""Results of one kind on the page."""


def recovery(run: RunData, domains: list[str], detail: Detail) -> Content | None:
    """The report's content on recovery: lists of results by kind; None where the run has none."""
    if not run.recovery:
        return None
    found: dict[str, list[Content]] = {kind: [] for kind in KINDS}
    for source, row in run.recovery.items():
        kind = kind_of(source, row)
        if kind:
            found[kind].append({**_head(source, row, domains), **_READERS[kind](row, domains, detail)})
    left_out = sum(max(0, len(rows) - MAX_SHOWN) for rows in found.values())
    return {kind: rows[:MAX_SHOWN] for kind, rows in found.items()} | {"left_out": left_out}


def kind_of(source: str, row: Row) -> str | None:
    """``recover``, ``rollback`` or ``refresh``, by the schema or else by the file's name; None for anything else."""
    schema = row.get("schema")
    name = schema.rsplit(".", 1)[-1] if isinstance(schema, str) else source.rsplit("/", 1)[-1].removesuffix(".json")
    return name if name in KINDS else None


def scores_of(value: object, domains: list[str]) -> list[Content]:
    """Scores by domain as ``domain, colour, score``, the run's domains first; ``score`` has ``mean, low, high``."""
    row = row_of(value)
    names = [name for name in domains if name in row] + [str(name) for name in row if name not in domains]
    found = [(name, score_of(row.get(name))) for name in names[:24]]
    return [
        {"domain": clean(name, 60), "colour": colour_of(name, domains), "score": item} for name, item in found if item
    ]


def colour_of(name: object, domains: list[str]) -> int:
    """The domain's place in the run's palette; what is no domain of the run has the last colour."""
    return domains.index(str(name)) % 8 if str(name) in domains else 7


def _head(source: str, row: Row, domains: list[str]) -> Content:
    """What all results share."""
    return {
        "source": clean(source, 120),
        "domain": clean(row.get("domain"), 60),
        "colour": colour_of(row.get("domain"), domains),
        "checkpoint": clean(row.get("checkpoint"), 300),
        "sentences": texts_of(row.get("sentences"), 24),
        **numbers_of(row, ("seconds",)),
    }


def _rollback(row: Row, domains: list[str], detail: Detail) -> Content:
    tried = [_try(item, domains) for item in rows_of(row.get("tried"))[: 4 * detail.curve_points]]
    chosen = [_try(row_of(item.get("trial")), domains) for item in rows_of(row.get("judged"))[:4]]
    return {
        "search": _split(row.get("search")),
        "test": _split(row.get("test")),
        "tried": [item for item in tried if item["budget"] is not None and item["budget"] > 0],
        "nothing": next((item["scores"] for item in tried if item["kind"] == "nothing"), []),
        "chosen": [item for item in chosen if item["budget"]],
        "measured": [_measured(item, domains) for item in rows_of(row.get("measured"))[:16]],
    }


def _split(value: object) -> Content:
    return numbers_of(row_of(value), ("prompts", "samples"))


def _try(row: Row, domains: list[str]) -> Content:
    scores = [item | {"score": item["score"]["mean"]} for item in scores_of(row.get("scores"), domains)]
    return {"kind": clean(row.get("kind"), 40), **numbers_of(row, ("budget", "scale")), "scores": scores}


def _measured(row: Row, domains: list[str]) -> Content:
    name = clean(row.get("name"), 60)
    return {
        "name": name,
        "label": _LABELS.get(name, name),
        "moved": number(row.get("moved")),
        "restored": score_of(row.get("restored")),
        "scores": scores_of(row.get("scores"), domains),
        "changes": scores_of(row.get("changes"), domains),
    }


_LABELS = {
    "matched": "random, same tensors and sizes",
    "uniform": "random, as many weights",
    "pull-back": "all weights",
}


def _refresh(row: Row, domains: list[str], detail: Detail) -> Content:
    moments = [{"step": 0, "scores": row.get("start")}, *rows_of(row.get("evaluations"))]
    by_step = {number(item.get("step")): scores_of(item.get("scores"), domains) for item in moments}
    steps = sorted(step for step in by_step if step is not None)[: detail.curve_points]
    return {
        "options": {clean(key, 60): clean(value, 200) for key, value in list(row_of(row.get("options")).items())[:24]},
        "former": score_of(row.get("former")),
        "start": scores_of(row.get("start"), domains),
        "evaluations": [{"step": step, "scores": by_step[step]} for step in steps if by_step[step]],
        "changes": scores_of(row.get("changes"), domains),
    }


def _recover(row: Row, domains: list[str], detail: Detail) -> Content:
    chosen = set(texts_of(row.get("chosen")))
    return {
        "fallen": [
            {
                "domain": clean(item.get("domain"), 60),
                "colour": colour_of(item.get("domain"), domains),
                **numbers_of(item, ("from_step", "to_step")),
                **{key: score_of(item.get(key)) for key in ("former", "now", "change")},
            }
            for item in rows_of(row.get("fallen"))[: detail.domains]
        ],
        "attempts": [_attempt(item, domains, chosen) for item in rows_of(row.get("attempts"))[:24]],
    }


def _attempt(row: Row, domains: list[str], chosen: set[str]) -> Content:
    name = clean(f"{clean(row.get('kind'), 40)} of {clean(row.get('domain'), 60)}")
    return {
        "name": name,
        "kept": name in chosen,
        "outcome": clean(row.get("outcome"), 40),
        "changes": scores_of(row.get("changes"), domains),
        **numbers_of(row, ("seconds",)),
    }


_READERS = {"recover": _recover, "rollback": _rollback, "refresh": _refresh}


MEASURED = {
    "before": ("@muted", "circle-open"),
    "after": ("@ink", "circle"),
    "mask": ("@r1", "diamond"),
    "matched": ("@r2", "triangle-up"),
    "uniform": ("@r2", "triangle-down"),
    "pull-back": ("@r3", "square"),
}
"""Colour and symbol of what is measured on the held-out prompts."""


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
        line = {"color": f"@d{colour}", "width": 3 if name == result["domain"] else 1.5}
        data.append(course([step for step, _ in known], [score for _, score in known], name, f"@d{colour}", line))
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
