"""How the results of recovery are written: as those of a diagnosis, under schemas of their own."""

from pathlib import Path
from typing import Any

from counterpoint.diagnosis import results
from counterpoint.runs.records import write_checked


def to_json(kind: str, result: Any) -> dict[str, Any]:
    """The dataclass ``result`` as JSON values, beginning with ``schema`` (``counterpoint.recovery.KIND``), ``version``.

    Numbers that JSON lacks are null.
    """
    return results.to_json(kind, result) | {"schema": f"counterpoint.recovery.{kind}"}


def write_result(path: Path, kind: str, result: Any) -> None:
    """Writes ``to_json`` whole and with a hash of itself: beside its place, then renamed."""
    write_checked(path, to_json(kind, result))
