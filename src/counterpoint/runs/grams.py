"""The Grams of a run: ``grams.jsonl``, one line per recorded step, read as arrays.

Legend: S recorded steps, G module groups, D domains, K groups of the strategy.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.errors import RunError
from counterpoint.runs.records import GramLine, Row, read_lines

FILE = "grams.jsonl"

_REMEDY = "Restore the file from a copy."


@dataclass(frozen=True)
class Grams:
    """``step_S`` int64, ``gram_SGDD`` and ``weights_SKD`` float32; domains are sorted, NaN where one was absent."""

    step_S: np.ndarray
    gram_SGDD: np.ndarray
    groups: tuple[str, ...]
    domains: tuple[str, ...]
    weights_SKD: np.ndarray
    strategy_groups: tuple[str, ...]


def gram_line(
    step: int,
    groups: Sequence[str],
    domains: Sequence[str],
    gram_GDD: np.ndarray,
    strategy_groups: Sequence[str],
    weights_KD: np.ndarray,
) -> Row:
    """The line of one step, of the domains that took part in it; ``strategy_groups`` are left out where they are
    ``groups``.
    """
    own = {} if tuple(strategy_groups) == tuple(groups) else {"strategy_groups": list(strategy_groups)}
    names = {"groups": list(groups), "domains": list(domains)} | own
    return {"step": step, **names, "gram": _text(gram_GDD), "weights": _text(weights_KD)}


def read_grams(path: Path) -> Grams:
    """The Grams of a run that may still be written.

    Raises:
        RunError: they cannot be read, or do not fit together.
    """
    rows = read_lines(path, GramLine, _REMEDY, growing=True)
    groups, strategy_groups = _names(rows[0]) if rows else ((), ())
    domains = tuple(sorted({name for row in rows for name in row["domains"]}))
    gram_SGDD = np.full((len(rows), len(groups), len(domains), len(domains)), np.nan, np.float32)
    weights_SKD = np.full((len(rows), len(strategy_groups), len(domains)), np.nan, np.float32)
    for i, row in enumerate(rows):
        try:
            if _names(row) != (groups, strategy_groups):
                raise ValueError("its groups are not those of the first line")
            index = np.array([domains.index(name) for name in row["domains"]])
            if len(set(row["domains"])) < len(index):
                raise ValueError("a domain stands there twice")
            gram_SGDD[i][:, index[:, None], index] = _array(row["gram"], len(groups), len(index), len(index))
            weights_SKD[i][:, index] = _array(row["weights"], len(strategy_groups), len(index))
        except ValueError as error:
            raise RunError(f"{path}, line {i + 1}: the Grams cannot be read ({error}). {_REMEDY}") from error
    step_S = np.array([row["step"] for row in rows], np.int64)
    return Grams(step_S, gram_SGDD, groups, domains, weights_SKD, strategy_groups)


def _names(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    groups = tuple(row["groups"])
    return groups, tuple(row.get("strategy_groups") or groups)


def _text(array: Any) -> str:
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


def _array(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f4").reshape(shape)
