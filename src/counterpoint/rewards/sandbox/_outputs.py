"""When what a program wrote or returned is what a test expects.

same_output("3 0.50 \\n\\n", "3 0.5")       True
same_output("3\\n0.5", "3 0.5")             False: other lines
same_value([1, (2.0000001, "a")], [1, [2.0, "a"]])    True
"""

import math
import re
from typing import Any

_FLOAT = re.compile(r"[+-]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)", re.ASCII)
_TOLERANCE = 1e-6


def same_output(written: str, expected: str) -> bool:
    """Whether two texts have the same lines of tokens.

    Tokens are equal as texts, or both numbers with a point or exponent that differ by at most 1e-6, absolutely or
    relative to the larger. Space between and around tokens and empty lines at both ends do not count.
    """
    lines, wanted = _lines(written), _lines(expected)
    return len(lines) == len(wanted) and all(map(_same_line, lines, wanted))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(line: str, expected: str) -> bool:
    if line == expected:
        return True
    tokens, wanted = line.split(), expected.split()
    return len(tokens) == len(wanted) and all(map(_same_token, tokens, wanted))


def _same_token(token: str, expected: str) -> bool:
    if token == expected:
        return True
    return bool(_FLOAT.fullmatch(token) and _FLOAT.fullmatch(expected)) and _close(float(token), float(expected))


def _close(number: float, expected: float) -> bool:
    # Infinity stands for any number that is too large for a float.
    return math.isfinite(expected) and math.isclose(number, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def same_value(value: Any, expected: Any) -> bool:
    """Whether a value is what JSON expects: a tuple is a list, the keys of a dict are texts, floats are as above."""
    if isinstance(value, float) and isinstance(expected, float):
        return value == expected or _close(value, expected)
    if isinstance(value, list | tuple) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(same_value, value, expected))
    if isinstance(value, dict) and isinstance(expected, dict):
        named = {str(key): item for key, item in value.items()}
        return named.keys() == expected.keys() and all(same_value(named[key], expected[key]) for key in expected)
    return bool(value == expected)
