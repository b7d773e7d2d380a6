"""Reads a run directory that may be unfinished, torn or damaged: files are optional, what is unreadable is noted."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from counterpoint.errors import RunError
from counterpoint.report.text import Row, clean
from counterpoint.runs.grams import Grams, read_grams


@dataclass(frozen=True)
class Detail:
    """Upper bounds on what the page repeats of the run's files."""

    curve_points: int
    """Points of one curve; longer ones are averaged in bins."""
    heat_cells: int
    """Cells of all heat maps together."""
    samples: int
    """Prompts shown per domain."""
    characters: int
    """Characters of one prompt or completion."""
    domains: int
    """Domains shown apart."""


LEVELS = (
    Detail(curve_points=400, heat_cells=60_000, samples=6, characters=6_000, domains=24),
    Detail(curve_points=150, heat_cells=20_000, samples=4, characters=2_000, domains=16),
    Detail(curve_points=60, heat_cells=6_000, samples=2, characters=600, domains=8),
)
"""Tried in order until the page is small enough."""


RUN_FILES = ("run.json", "config.yaml", "metrics.jsonl", "evals.jsonl")
"""A directory with none of these is no run directory."""

DIAGNOSIS = ("summary", "behaviour")
"""Files of ``diagnosis/`` that the page shows; the others are for programs."""

RECOVERY = ("recover", "rollback", "refresh")
"""Files of ``recovery/`` and of the folders below it that the page shows."""

RECOVERY_FOLDERS = ("recovery", "recovery/*", "recovery/*/recovery")

MAX_RECOVERY_FILES = 24


@dataclass(frozen=True)
class RunData:
    """Everything a run directory holds; ``notes`` says in words what was missing or unreadable.

    ``diagnosis`` holds JSON objects by the name of their file, ``recovery`` by their place in the run directory.
    """

    path: Path
    info: Row
    config: Row
    config_text: str
    environment: Row
    metrics: tuple[Row, ...]
    evals: tuple[Row, ...]
    samples: tuple[Row, ...]
    grams: Grams | None
    diagnosis: dict[str, Row]
    recovery: dict[str, Row]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's name, or its directory's."""
        return clean(self.info.get("name") or self.path.resolve().name, 80)


def read_run(path: Path) -> RunData:
    """The content of the run directory ``path``.

    Raises:
        RunError: ``path`` is no directory, or holds none of the files of a run.
    """
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise RunError(f"A report needs a run directory; found {found} at '{path}'. Pass the folder that train made.")
    if not any((path / name).is_file() for name in RUN_FILES):
        raise RunError(
            f"'{path}' is no run directory: it holds none of {', '.join(RUN_FILES)}. "
            "Pass the folder that train made, usually runs/NAME."
        )
    notes: list[str] = []
    config_text = _text(path / "config.yaml", notes)
    return RunData(
        path=path,
        info=read_json(path / "run.json", notes),
        config=_yaml(config_text, notes),
        config_text=config_text,
        environment=read_json(path / "environment.json", notes),
        metrics=_rows(path / "metrics.jsonl", notes),
        evals=_rows(path / "evals.jsonl", notes),
        samples=_rows(path / "samples.jsonl", notes),
        grams=_grams(path / "grams.jsonl", notes),
        diagnosis=_diagnosis(path / "diagnosis", notes),
        recovery=_recovery(path, notes),
        notes=tuple(notes),
    )


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except OSError as error:
        notes.append(f"{path.name} cannot be read ({error.strerror}).")
    return ""


def read_json(path: Path, notes: list[str]) -> Row:
    """The object in a file; an empty one, and a note, where there is none."""
    text = _text(path, notes)
    if not text:
        return {}
    value = _parsed(text)
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a whole JSON object and was left out.")
        return {}
    return value


def _yaml(text: str, notes: list[str]) -> Row:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        notes.append("config.yaml is not readable YAML; it is shown as it is.")
        return {}
    return value if isinstance(value, dict) else {}


def _rows(path: Path, notes: list[str]) -> tuple[Row, ...]:
    lines = [line for line in _text(path, notes).split("\n") if line.strip()]
    rows = [_parsed(line) for line in lines]
    whole = tuple(row for row in rows if isinstance(row, dict))
    if len(whole) < len(lines):
        notes.append(f"{path.name}: {len(lines) - len(whole)} of {len(lines)} lines are torn or malformed, left out.")
    return whole


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _grams(path: Path, notes: list[str]) -> Grams | None:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return None
    try:
        return read_grams(path)
    except RunError as error:
        notes.append(clean(str(error).removeprefix(f"{path.parent}/"), 160))
        return None


def _diagnosis(folder: Path, notes: list[str]) -> dict[str, Row]:
    """The parts of a diagnosis that the page shows, by name; a run that was not diagnosed lacks nothing."""
    names = [name for name in DIAGNOSIS if (folder / f"{name}.json").exists()]
    return {name: read_json(folder / f"{name}.json", notes) for name in names}


def _recovery(run: Path, notes: list[str]) -> dict[str, Row]:
    """The results of recovery, those of the run itself before those in folders below."""
    names = [f"{kind}.json" for kind in RECOVERY]
    found = [path for folder in RECOVERY_FOLDERS for name in names for path in sorted(run.glob(f"{folder}/{name}"))]
    if len(found) > MAX_RECOVERY_FILES:
        notes.append(f"{len(found) - MAX_RECOVERY_FILES} of {len(found)} files below recovery/ were left out.")
    return {str(path.relative_to(run)): read_json(path, notes) for path in found[:MAX_RECOVERY_FILES]}
