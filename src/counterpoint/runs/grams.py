"""Reads ``grams.safetensors``.

Legend: S recorded steps, G module groups, D domains of the run, K groups of the strategy.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from counterpoint.errors import RunError
from counterpoint.runs.records import Names

FILE = "grams.safetensors"

_NAMES: TypeAdapter[list[str]] = TypeAdapter(Names)


@dataclass(frozen=True)
class Grams:
    """``step_S`` int64, ``gram_SGDD`` as it is kept (float32), NaN where a domain was absent.

    ``weights_SKD`` and ``strategy_groups`` are empty in files that hold Grams alone.
    """

    step_S: np.ndarray
    gram_SGDD: np.ndarray
    groups: tuple[str, ...]
    domains: tuple[str, ...]
    weights_SKD: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0)))
    strategy_groups: tuple[str, ...] = ()

    def until(self, step: int) -> "Grams":
        """The records up to ``step``."""
        kept = self.step_S <= step
        weights_SKD = self.weights_SKD[kept] if len(self.weights_SKD) else self.weights_SKD
        return replace(self, step_S=self.step_S[kept], gram_SGDD=self.gram_SGDD[kept], weights_SKD=weights_SKD)

    @property
    def digest(self) -> str:
        """A hash of all of it."""
        found = hashlib.blake2b(json.dumps([self.groups, self.domains, self.strategy_groups]).encode(), digest_size=16)
        for array in (self.step_S, self.gram_SGDD, self.weights_SKD):
            found.update(f"{array.dtype.str}{array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def read_grams(path: Path) -> Grams:
    """The Grams of a run.

    Raises:
        RunError: they cannot be read, or do not fit together.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.metadata() or {}
            arrays = {name: np.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (no dict)
        found = Grams(arrays["step"], arrays["gram"], _names(names["groups"]), _names(names["domains"]))
        if "weights" in arrays and "strategy_groups" in names:
            found = replace(found, weights_SKD=arrays["weights"], strategy_groups=_names(names["strategy_groups"]))
        _check(found)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path}: the Grams cannot be read ({reason}). Restore the file from a copy.") from error
    return found


def _names(text: str) -> tuple[str, ...]:
    return tuple(_NAMES.validate_python(json.loads(text), strict=True))


def _check(found: Grams) -> None:
    shape: Any = (len(found.step_S), len(found.groups), len(found.domains), len(found.domains))
    if found.step_S.ndim != 1 or found.step_S.dtype.kind != "i" or found.gram_SGDD.shape != shape:
        raise ValueError(
            f"shape {found.gram_SGDD.shape} does not fit {shape[0]} steps, {shape[1]} groups and {shape[2]} domains"
        )
    if found.gram_SGDD.dtype.kind != "f" or found.weights_SKD.dtype.kind != "f":
        raise ValueError(f"numbers of type {found.gram_SGDD.dtype}")
    if len(set(found.domains)) < len(found.domains) or len(set(found.groups)) < len(found.groups):
        raise ValueError("a domain or a group stands there twice")
    if len(found.weights_SKD) and found.weights_SKD.shape != (shape[0], len(found.strategy_groups), shape[2]):
        raise ValueError(f"weights of shape {found.weights_SKD.shape} do not fit {shape[0]} steps")
