"""What ``diagnosis/summary.json`` and ``diagnosis/behaviour.json`` say, cleaned: who hurt whom, where, how surely."""

from typing import Any

from counterpoint.report._cosines import MAX_MODULES, layer_key
from counterpoint.report._detail import Detail
from counterpoint.report._fields import Row, estimate, names_of, row_of, rows_of, texts_of
from counterpoint.report._read import RunData
from counterpoint.report._text import clean, number

MAX_PAIRS = 28
"""Pairs shown: all pairs of eight domains."""

PARTS_OF_DAMAGE = ("measured", "first", "second", "fisher")

Content = dict[str, Any]


def diagnosis(run: RunData, domains: list[str], detail: Detail) -> Content | None:
    """The report's content on the diagnosis; None where the run has none."""
    summary, behaviour = run.diagnosis.get("summary", {}), run.diagnosis.get("behaviour", {})
    if not summary and not behaviour:
        return None
    rows = rows_of(summary.get("pairs"))
    pairs = [_pair(row) for row in rows[: min(MAX_PAIRS, max(1, detail.heat_cells // 400))]]
    return {
        "changes": _changes(behaviour, domains),
        "pairs": pairs,
        "totals": [_total(row) for row in rows_of(summary.get("totals"))[:MAX_PAIRS]],
        "pairs_left_out": len(rows) - len(pairs),
        "modules": _modules(pairs, summary),
        "edits": [_edit(row) for row in rows_of(summary.get("edits"))[:MAX_PAIRS]],
        "behaviour": _course(behaviour, domains),
        "sentences": texts_of(summary.get("sentences"), 48, 600),
        "notes": texts_of(summary.get("notes"), 24, 600),
        "failed": [
            {"name": clean(row.get("name"), 80), "reason": clean(row.get("reason"), 600)}
            for row in rows_of(summary.get("parts"))
            if row.get("status") == "failed"
        ],
    }


def _changes(behaviour: Row, domains: list[str]) -> Content | None:
    """The matrix domain x stage; ``own`` marks a domain in its own stage."""
    rows = [row for row in rows_of(behaviour.get("changes")) if estimate(row.get("change"))]
    if not rows:
        return None
    keys = list(dict.fromkeys((number(row.get("first_step")), names_of(row.get("during"))) for row in rows))
    by_cell = {(str(row.get("domain")), number(row.get("first_step"))): row for row in rows}
    return {
        "stages": [name for _, name in keys],
        "rows": [
            {"domain": clean(name, 60), "cells": [_cell(by_cell.get((name, step)), name) for step, _ in keys]}
            for name in domains
        ],
        "comparisons": len(rows),
    }


def _cell(row: Row | None, domain: str) -> Content | None:
    if row is None:
        return None
    during = row.get("during")
    own = isinstance(during, list) and domain in during
    return {"change": estimate(row.get("change")), "verdict": clean(row.get("verdict"), 40), "own": own}


def _pair(row: Row) -> Content:
    damage, conflict = row_of(row.get("damage")), row_of(row.get("conflict"))
    return {
        "earlier": clean(row.get("earlier"), 60),
        "later": clean(row.get("later"), 60),
        "together": row.get("together") is True,
        "verdict": clean(row.get("verdict"), 120),
        "change": estimate(row.get("change")),
        "sentences": [clean(row.get(key), 1200) for key in ("outcome", "mechanism") if row.get(key)],
        "damage": {key: estimate(damage.get(key)) for key in PARTS_OF_DAMAGE} if damage else None,
        "damage_modules": _damage_modules(damage),
        "conflict_modules": _conflict_modules(conflict),
        "conflict_moment": clean(conflict.get("moment"), 60),
        "edits": _overlap(row.get("edits")),
        "routes": _overlap(row.get("routes")),
    }


def _total(row: Row) -> Content:
    """All later stages together, in the form of a pair for the bars."""
    damage = row_of(row.get("damage"))
    return {
        "earlier": clean(row.get("domain"), 60),
        "later": "all later" if row.get("later") else "",
        "together": False,
        "sentence": clean(row.get("sentence"), 1200),
        "damage": {key: estimate(damage.get(key)) for key in PARTS_OF_DAMAGE} if damage else None,
    }


def _damage_modules(damage: Row) -> dict[str, Content]:
    return {
        clean(row.get("module"), 60): {"second": estimate(row.get("second")), "edit": number(row.get("edit_share"))}
        for row in rows_of(damage.get("modules"))
    }


def _conflict_modules(conflict: Row) -> dict[str, Content]:
    keys = ("cosine", "floor", "debiased", "verdict")
    return {
        clean(row.get("module"), 60): {key: number(row.get(key)) for key in keys}
        for row in rows_of(conflict.get("modules"))
    }


def _overlap(value: object) -> dict[str, float | None] | None:
    keys = ("fraction", "jaccard", "chance", "p_value")
    return {key: number(value.get(key)) for key in keys} if isinstance(value, dict) else None


def _edit(row: Row) -> Content:
    return {
        "stage": names_of(row.get("domains")),
        "unchanged": number(row.get("unchanged")),
        "relative_norm": number(row.get("relative_norm")),
        "modules": {
            clean(part.get("module"), 60): number(part.get("relative_norm")) for part in rows_of(row.get("modules"))
        },
    }


def _modules(pairs: list[Content], summary: Row) -> list[str]:
    """Every module that any map shows, in the order of a forward pass, no more than a page can hold."""
    edits = [_edit(row) for row in rows_of(summary.get("edits"))]
    names = {name for pair in pairs for key in ("damage_modules", "conflict_modules") for name in pair[key]}
    return sorted(names | {name for edit in edits for name in edit["modules"]}, key=layer_key)[:MAX_MODULES]


def _course(behaviour: Row, domains: list[str]) -> Content | None:
    """Length and distinct bigrams over the moments, entropy at both ends of a domain's stage."""
    scores = rows_of(behaviour.get("scores"))
    if not scores:
        return None
    moments = {number(row.get("step")): clean(row.get("moment"), 40) for row in scores}
    steps = sorted(step for step in moments if step is not None)
    diversity = [row for row in rows_of(behaviour.get("diversity")) if row.get("n") == 2]
    return {
        "moments": [moments[step] for step in steps],
        "length": [_line(scores, name, steps, "completion_length") for name in domains],
        "distinct": [_line(diversity, name, steps, "distinct") for name in domains],
        "entropy": [
            {"domain": clean(row.get("domain"), 60), "colour": domains.index(str(row.get("domain"))), **_ends(row)}
            for row in rows_of(behaviour.get("entropy"))
            if str(row.get("domain")) in domains and all(_ends(row).values())
        ],
    }


def _line(rows: list[Row], domain: str, steps: list[float], key: str) -> Content:
    found = {number(row.get("step")): number(row.get(key)) for row in rows if str(row.get("domain")) == domain}
    return {"domain": clean(domain, 60), "value": [found.get(step) for step in steps]}


def _ends(row: Row) -> Content:
    return {key: estimate(row.get(key)) for key in ("first", "last")}
