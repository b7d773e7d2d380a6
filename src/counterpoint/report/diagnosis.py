"""What ``diagnosis/summary.json`` and ``behaviour.json`` say, cleaned: who hurt whom, where, how surely."""

import re
from typing import Any

from counterpoint.report._cosines import MAX_MODULES, layer_key
from counterpoint.report._detail import Detail
from counterpoint.report._fields import Row, estimate, list_of, names_of, row_of, rows_of, texts_of
from counterpoint.report._text import clean, number

MAX_PAIRS = 28
"""Pairs shown: all pairs of eight domains."""

TERMS = ("measured", "first", "second", "fisher")
"""Terms of a damage."""

Content = dict[str, Any]


def diagnosis(files: dict[str, Row], domains: list[str], detail: Detail) -> Content | None:
    """The report's content on a diagnosis, whose ``files`` are by name; None where there are none."""
    summary, behaviour = files.get("summary", {}), files.get("behaviour", {})
    if not summary and not behaviour:
        return None
    rows = rows_of(summary.get("pairs"))
    pairs = [_pair(row) for row in rows[: min(MAX_PAIRS, max(1, detail.heat_cells // 400))]]
    stages = [_stage(row) for row in rows_of(summary.get("stages"))[:MAX_PAIRS]]
    failed = [row for row in rows_of(summary.get("parts")) if row.get("status") == "failed"]
    return {
        "matrix": _matrix(rows_of(summary.get("changes")) or rows_of(behaviour.get("changes")), domains, pairs),
        "verdicts": [
            *(prose(text) for text in texts_of(summary.get("verdicts"), 48, 600)),
            *(pair["sentence"] for pair in pairs if pair["found"]),
        ],
        "pairs": pairs,
        "pairs_left_out": len(rows) - len(pairs),
        "totals": [_total(row) for row in rows_of(summary.get("totals"))[:MAX_PAIRS]],
        "modules": _modules(pairs, stages),
        "stages": stages,
        "behaviour": _course(behaviour, domains),
        "notes": [prose(text) for text in texts_of(summary.get("notes") or behaviour.get("notes"), 24, 600)],
        "failed": [{"name": clean(row.get("name"), 80), "reason": prose(row.get("reason"))} for row in failed],
    }


def prose(value: object, limit: int = 600) -> str:
    """A sentence for people, with true minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "\u2212", clean(value, limit))


def _matrix(rows: list[Row], domains: list[str], pairs: list[Content]) -> Content | None:
    """Domain by stage: the change of the score, and the pairs whose details belong under it."""
    rows = [row for row in rows if estimate(row.get("corrected"))]
    if not rows:
        return None
    stages = list(dict.fromkeys((number(row.get("first_step")), _name(row)) for row in rows))
    by_cell = {(str(row.get("domain")), number(row.get("first_step"))): row for row in rows}
    below: dict[tuple[str, float | None], list[Content]] = {}
    for pair in pairs:
        below.setdefault((pair["earlier"], pair["first_step"]), []).append(pair)
    lines = [
        {
            "domain": clean(name, 60),
            "cells": [_cell(by_cell.get((name, step)), below.get((clean(name, 60), step), [])) for step, _ in stages],
        }
        for name in domains
    ]
    return {"stages": [name for _, name in stages], "rows": lines, "comparisons": len(rows)}


def _name(row: Row) -> str:
    """``while code`` or ``refresh of math``."""
    name = clean(row.get("stage"), 60) or names_of(row.get("during"))
    return name if name.startswith("refresh") else f"while {name}"


def _cell(row: Row | None, pairs: list[Content]) -> Content:
    change = estimate(row.get("corrected")) if row else None
    own = row is not None and row.get("role") == "own"
    return {"change": change, "verdict": clean(row.get("verdict"), 40) if row else "", "own": own, "pairs": pairs}


def _pair(row: Row) -> Content:
    damage, conflict = row_of(row.get("damage")), row_of(row.get("conflict"))
    found = texts_of(row.get("found"), 8, 40)
    return {
        "earlier": clean(row.get("earlier"), 60),
        "later": clean(row.get("later"), 60),
        "together": row.get("together") is True,
        "first_step": number(row.get("first_step")),
        "found": found,
        "sentence": prose(row.get("sentence")),
        "details": [prose(text) for text in texts_of(row.get("details"), 8)],
        "place": clean(row.get("place"), 80) if found else "",
        "damage": _terms(damage),
        "damage_modules": {
            clean(part.get("module"), 60): {
                "second": estimate(part.get("second")),
                "edit": number(part.get("edit_share")),
            }
            for part in rows_of(damage.get("modules"))
        },
        "conflict_modules": {
            clean(part.get("module"), 60): {
                key: number(part.get(key)) for key in ("cosine", "floor", "debiased", "verdict")
            }
            for part in rows_of(conflict.get("modules"))
        },
        "edits": _overlap(row.get("edits")),
        "routes": _overlap(row.get("routes")),
    }


def _total(row: Row) -> Content:
    """All later stages together, in the form of a pair for the bars."""
    return {
        "earlier": clean(row.get("domain"), 60),
        "later": "all later" if list_of(row.get("later")) else "",
        "together": False,
        "sentence": prose(row.get("sentence")),
        "damage": _terms(row_of(row.get("damage"))),
    }


def _terms(damage: Row) -> dict[str, dict[str, float] | None] | None:
    terms = {key: estimate(damage.get(key)) for key in TERMS}
    return terms if any(terms.values()) else None


def _overlap(value: object) -> dict[str, float | None] | None:
    keys = ("fraction", "jaccard", "chance", "p_value")
    return {key: number(value.get(key)) for key in keys} if isinstance(value, dict) else None


def _stage(row: Row) -> Content:
    parts = rows_of(row_of(row.get("edit")).get("modules"))
    return {
        "stage": clean(row.get("stage"), 60),
        "modules": {clean(part.get("module"), 60): number(part.get("relative_norm")) for part in parts},
    }


def _modules(pairs: list[Content], stages: list[Content]) -> list[str]:
    """Every module that any map shows, in the order of a forward pass, no more than a page can hold."""
    names = {name for pair in pairs for key in ("damage_modules", "conflict_modules") for name in pair[key]}
    return sorted(names | {name for stage in stages for name in stage["modules"]}, key=layer_key)[:MAX_MODULES]


def _course(behaviour: Row, domains: list[str]) -> Content | None:
    """Length and distinct bigrams over the moments, entropy at both ends of a domain's stage."""
    scores = rows_of(behaviour.get("scores"))
    if not scores:
        return None
    moments = {number(row.get("step")): clean(row.get("moment"), 40) for row in scores}
    steps = sorted(step for step in moments if step is not None)
    diversity = [row for row in rows_of(behaviour.get("diversity")) if row.get("n") == 2]
    entropy = [
        {"domain": clean(name, 60), "colour": domains.index(name), **_ends(row)}
        for row in rows_of(behaviour.get("entropy"))
        if (name := str(row.get("domain"))) in domains and all(_ends(row).values())
    ]
    return {
        "moments": [moments[step] for step in steps],
        "length": [_line(scores, name, steps, "completion_length") for name in domains],
        "distinct": [_line(diversity, name, steps, "distinct") for name in domains],
        "entropy": entropy,
    }


def _line(rows: list[Row], domain: str, steps: list[float], key: str) -> Content:
    found = {number(row.get("step")): number(row.get(key)) for row in rows if str(row.get("domain")) == domain}
    return {"domain": clean(domain, 60), "value": [found.get(step) for step in steps]}


def _ends(row: Row) -> Content:
    return {key: estimate(row.get(key)) for key in ("first", "last")}
