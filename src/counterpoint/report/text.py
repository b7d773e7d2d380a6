"""Texts and fields of foreign files made safe: for HTML, a plot, a script and UTF-8; of the wrong type is absent."""

import html
import json
import math
import re
from collections.abc import Iterable
from typing import Any

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
# Marks that reorder the text around them; shown by their number instead.
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")
_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def clean(value: object, limit: int | None = None) -> str:
    """``value`` as text that UTF-8 can hold: surrogate pairs joined, lone ones replaced, control characters visible.

    Longer text than ``limit`` characters is cut and ends in an ellipsis.
    """
    text = value if isinstance(value, str) else "" if value is None else str(value)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    cut = limit is not None and len(text) > limit
    text = text[:limit] if cut else text
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _CONTROLS.sub(lambda match: _visible(match.group()), text)
    text = _BIDI.sub(lambda match: f"\u27e8U+{ord(match.group()):04X}\u27e9", text)
    return text + "\u2026" if cut else text


def prose(value: object, limit: int | None = None) -> str:
    """A sentence for people, with true minus signs before its numbers."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "\u2212", clean(value, limit))


def plot_text(value: object, limit: int = 40) -> str:
    """``value`` for a text of a plotly figure, which reads ``<b>``, ``<a href>``, ``%{y}`` and ``$..$`` as markup.

    Plotly decodes entities after it has looked for tags, so escaped text is shown as it is.
    """
    return (
        html.escape(clean(value, limit), quote=False).replace("$", "&#36;").replace("%{", "&#37;{").replace("\n", " ")
    )


def script_json(value: Any) -> str:
    """JSON for the inside of a ``<script>`` element: no character in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: _SCRIPT[match.group()], text)


def number(value: object) -> float | None:
    """``value`` as a finite float, or None: a missing, malformed, infinite or absurd number is no number.

    Beyond 1e100 a difference or a product of two of them could be infinite, which JSON cannot hold.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if abs(result) < 1e100 else None


def score(mean: float | None, low: float | None = None, high: float | None = None) -> str:
    """A score with its interval: ``0.62 [0.58, 0.66]``; a dash where there is none."""
    if mean is None:
        return "\u2013"
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def signed(value: float | None) -> str:
    """A change with its sign, ``+0.21`` or ``\u22120.03``."""
    if value is None:
        return "\u2013"
    return f"{value:+.2f}".replace("-", "\u2212")


def points(value: float | None) -> str:
    """A change of a score in points of a hundred, ``+21.4`` or ``\u22123.0``."""
    return "\u2013" if value is None else f"{100 * value:+.1f}".replace("-", "\u2212")


def duration(seconds: float | None) -> str:
    """``3 h 05 min``, ``4 min 10 s`` or ``7.5 s``."""
    if seconds is None or not 0 <= seconds < math.inf:
        return "\u2013"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def fact(value: object) -> object:
    """A value for one cell: lists and mappings in words."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return value


def _visible(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


Row = dict[str, Any]

Content = dict[str, Any]
"""A part of a page: plain values with cleaned texts."""


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


def score_of(value: object) -> Content | None:
    """An estimate, or a bare number, as ``mean, low, high``, the last two None where one of them is no number."""
    row = row_of(value)
    mean = number(row.get("value", row.get("mean"))) if row else number(value)
    low, high = number(row.get("low")), number(row.get("high"))
    if mean is None:
        return None
    if low is None or high is None:
        low = high = None
    return {"mean": mean, "low": low, "high": high}


def estimate(value: object) -> Content | None:
    """The same where the whole interval is known, else None."""
    found = score_of(value)
    return found if found and found["low"] is not None else None
