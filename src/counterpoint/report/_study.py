"""What ``study.json`` says, cleaned: rows of strategies, their scores over seeds, differences, cost.

Every score is a mean over seeds with its interval; a difference is paired by seed against the reference row.
"""

from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.report._fields import Row, list_of, numbers_of, row_of, rows_of, texts_of
from counterpoint.report._read import read_json
from counterpoint.report._recovery import score_of
from counterpoint.report._text import clean, number

STUDY = "study.json"

MAX_ROWS = 40
MAX_DOMAINS = 10
MAX_SEEDS = 50

AVERAGE = "average"

Content = dict[str, Any]


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


def study(row: Row, folder: str, notes: list[str]) -> Content:
    """The content of the page on a study as plain JSON values with cleaned texts."""
    names = [str(name) for name in list_of(row.get("domains"))] or _domains_of_rows(row)
    rows, domains = rows_of(row.get("rows")), names[:MAX_DOMAINS]
    notes = [*notes, *texts_of(row.get("notes"), 48)]
    if len(rows) > MAX_ROWS:
        notes.append(f"{len(rows) - MAX_ROWS} of {len(rows)} rows are left out to keep the page readable.")
    if len(names) > MAX_DOMAINS:
        notes.append(f"{len(names) - MAX_DOMAINS} of {len(names)} domains are left out to keep the page readable.")
    seeds = [clean(seed, 20) for seed in list_of(row.get("seeds"))[:MAX_SEEDS]]
    return {
        "name": clean(row.get("name"), 80) or clean(folder, 80),
        "reference": clean(row.get("reference"), 60),
        "seeds": seeds,
        "domains": [clean(name, 60) for name in domains],
        "budget": _facts(row.get("budget")),
        "settings": _facts(row.get("settings")),
        "rows": [_row(item, domains, len(seeds)) for item in rows[:MAX_ROWS]],
        "notes": notes,
        "environment": _facts(row.get("environment")),
    }


def _domains_of_rows(row: Row) -> list[str]:
    return list(dict.fromkeys(str(name) for item in rows_of(row.get("rows")) for name in row_of(item.get("scores"))))


def _facts(value: object) -> dict[str, str]:
    """Short facts by name; a list of sentences becomes numbered ones."""
    if isinstance(value, list):
        return {str(index + 1): clean(item, 1000) for index, item in enumerate(value[:60])}
    return {clean(key, 60): clean(_fact(item), 1000) for key, item in list(row_of(value).items())[:60]}


def _fact(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value


def _row(row: Row, domains: list[str], num_seeds: int) -> Content:
    scores, difference = row_of(row.get("scores")), row_of(row.get("difference"))
    difference_of, planned = row_of(row.get("difference_of")), number(row.get("seeds_planned"))
    failed = [
        {"seed": clean(item.get("seed"), 20), "reason": clean(item.get("reason"), 600)}
        for item in rows_of(row.get("failed"))[:MAX_SEEDS]
    ]
    return {
        "name": clean(row.get("name"), 60),
        "kind": clean(row.get("kind"), 30),
        "description": clean(row.get("description"), 400),
        "seeds_done": len(list_of(row.get("seeds_done"))),
        "seeds_planned": num_seeds if planned is None else int(planned),
        "failed": failed,
        "scores": [_score(scores.get(name)) for name in domains],
        "average": _score(row.get("average")),
        "difference": [_difference(difference.get(name)) for name in domains],
        "average_difference": _difference(difference.get(AVERAGE)),
        "of": clean(row.get("of"), 60) if row.get("of") is not None else "",
        "difference_of": [_difference(difference_of.get(name)) for name in domains],
        "average_difference_of": _difference(difference_of.get(AVERAGE)),
        **{key: [score_of(row_of(row.get(key)).get(name)) for name in domains] for key in ("forgetting", "rigidity")},
        "cost": numbers_of(row_of(row.get("cost")), ("steps", "tokens", "seconds")),
    }


def _score(value: object) -> Content | None:
    found = score_of(value)
    if found is None:
        return None
    seeds = [number(item) for item in list_of(row_of(value).get("by_seed"))[:MAX_SEEDS]]
    return {**found, "by_seed": [item for item in seeds if item is not None]}


def _difference(value: object) -> Content | None:
    found, row = score_of(value), row_of(value)
    if found is None:
        return None
    return {**found, **numbers_of(row, ("p", "p_corrected")), "verdict": clean(row.get("verdict"), 40)}


def non_dominated(points: list[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at least as high in both coordinates and higher in one."""
    return [
        not any(other[0] >= point[0] and other[1] >= point[1] and other != point for other in points)
        for point in points
    ]
