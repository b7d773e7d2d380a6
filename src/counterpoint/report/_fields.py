"""Reads fields of foreign JSON: whatever has the wrong type is absent, never an error."""

from collections.abc import Iterable
from typing import Any

from counterpoint.report._text import clean, number

Row = dict[str, Any]

Estimate = dict[str, float]
"""``value, low, high``, all finite."""


def row_of(value: object) -> Row:
    """``value`` where it is an object, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def list_of(value: object) -> list[Any]:
    """``value`` where it is a list, an empty one otherwise."""
    return value if isinstance(value, list) else []


def rows_of(value: object) -> list[Row]:
    """The objects in a list; everything else in it is left out."""
    return [row for row in list_of(value) if isinstance(row, dict)]


def texts_of(value: object, count: int = 48, limit: int = 1200) -> list[str]:
    """The first ``count`` entries of a list as cleaned texts, empty ones left out."""
    return [clean(text, limit) for text in list_of(value)[:count] if text not in (None, "")]


def names_of(value: object, limit: int = 60) -> str:
    """A list of names, or one name, as one text."""
    names = [str(name) for name in value] if isinstance(value, list) else [clean(value)]
    return clean(", ".join(names), limit)


def numbers_of(row: Row, keys: Iterable[str]) -> dict[str, float | None]:
    """The numbers under ``keys``, None where there is none."""
    return {key: number(row.get(key)) for key in keys}


def estimate(value: object) -> Estimate | None:
    """``value, low, high``, also where the first is called ``mean``; None where one of them is no number."""
    row = row_of(value)
    middle = number(row.get("value", row.get("mean")))
    low, high = number(row.get("low")), number(row.get("high"))
    if middle is None or low is None or high is None:
        return None
    return {"value": middle, "low": low, "high": high}


def estimates(value: object, count: int = 24) -> dict[str, Estimate]:
    """Estimates by name, as the file spells the names; what is none is left out."""
    found = {str(name): estimate(item) for name, item in list(row_of(value).items())[:count]}
    return {name: item for name, item in found.items() if item}
