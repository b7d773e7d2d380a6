"""How the results of a diagnosis are written: frozen dataclasses as JSON with a schema's name and version."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from counterpoint.disk import write_json

VERSION = 1
"""Version of every schema; it rises when a field is renamed, removed or changes its meaning."""


def to_json(kind: str, result: Any) -> dict[str, Any]:
    """The dataclass ``result`` as JSON values: tensors as nested lists, numbers that JSON lacks as null.

    The object begins with ``schema`` (``counterpoint.diagnosis.KIND``) and ``version``.
    """
    assert dataclasses.is_dataclass(result), f"{type(result).__name__} is no dataclass"
    return {"schema": f"counterpoint.diagnosis.{kind}", "version": VERSION} | _plain(result)


def write_result(path: Path, kind: str, result: Any) -> None:
    """Writes ``to_json`` whole: beside its place, then renamed."""
    write_json(path, to_json(kind, result))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
