"""What ``recovery/*.json`` say, cleaned: what fell, what was tried, what it brought back and what it cost.

A file names its form in ``schema``; one without is taken for what its name says.
"""

from typing import Any

from counterpoint.report._detail import Detail
from counterpoint.report._fields import Row, estimate, numbers_of, row_of, rows_of, texts_of
from counterpoint.report._read import RunData
from counterpoint.report._text import clean, number

KINDS = ("recover", "rollback", "refresh")

MAX_SHOWN = 6
"""Results of one kind on the page."""

Content = dict[str, Any]


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


def score_of(value: object) -> Content | None:
    """An estimate, or a bare number, as ``mean, low, high``."""
    found = estimate(value)
    if found:
        return {"mean": found["value"], "low": found["low"], "high": found["high"]}
    row = row_of(value)
    mean = number(row.get("value", row.get("mean"))) if row else number(value)
    return None if mean is None else {"mean": mean, "low": None, "high": None}


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
    row = row_of(value)
    return {**numbers_of(row, ("prompts", "samples")), "rows": clean(row.get("rows"), 60)}


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
