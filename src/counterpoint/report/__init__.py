"""A run directory or a study as one self-contained HTML page.

>>> from counterpoint.report import write_report
>>> page = write_report(Path("runs/demo-mgs"), compare=[Path("runs/demo-mixed")])  # doctest: +SKIP

Never imports torch, so a report can be made where nothing can be trained.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint.disk import write_text
from counterpoint.errors import RunError
from counterpoint.masking import masked_command, masked_names
from counterpoint.report._cosines import module_cosines
from counterpoint.report._curves import domain_curves, surgery_curves
from counterpoint.report._detail import LEVELS, Detail
from counterpoint.report._diagnosis import diagnosis
from counterpoint.report._overview import domain_names, overview
from counterpoint.report._page import render, render_study
from counterpoint.report._read import RunData, read_run
from counterpoint.report._recovery import recovery
from counterpoint.report._samples import samples
from counterpoint.report._scores import comparison, evaluation
from counterpoint.report._text import clean
from counterpoint.report.study import STUDY, read_study, study_content

__all__ = ["build", "is_study", "page_of", "write_report", "write_study_report"]

MAX_BYTES = 5_900_000
"""The page stays below six megabytes, of which plotly.js takes 4.8."""


def write_report(run_dir: Path, *, compare: Sequence[Path] = ()) -> Path:
    """Writes ``report.html`` into ``run_dir`` and returns the page's path.

    Args:
        run_dir: a run directory; every file in it may be missing, unfinished or torn.
        compare: further run directories, shown beside this one domain by domain.

    Raises:
        RunError: one of the paths is no run directory, or the report cannot be written.
    """
    return _write(Path(run_dir) / "report.html", _page_of_run(run_dir, compare, None))


def write_study_report(folder: Path) -> Path:
    """Writes ``study.html`` into the folder of a study and returns the page's path.

    Raises:
        RunError: there is no ``study.json``, or the report cannot be written. A torn ``study.json`` gives a page that
            says so.
    """
    return _write(Path(folder) / "study.html", _page_of_study(folder, None))


def page_of(path: Path, compare: Sequence[Path] = (), version: str | None = None) -> str:
    """The page on a run or on a study, without writing anything.

    With a ``version`` the page is one to be served: it asks its server for news.

    Raises:
        RunError: ``path`` is neither, or a study is to be compared.
    """
    if not is_study(path):
        return _page_of_run(path, compare, version)
    if compare:
        raise RunError(f"'{path}' is a study, whose page compares its own runs. Leave out --compare.")
    return _page_of_study(path, version)


def is_study(path: Path) -> bool:
    """Whether ``path`` is the folder of a study."""
    return (Path(path) / STUDY).is_file()


def _page_of_run(path: Path, compare: Sequence[Path], version: str | None) -> str:
    runs = [read_run(Path(item)) for item in (path, *compare)]
    for detail in LEVELS:
        page = render(build(runs, detail), version)
        if len(page.encode()) < MAX_BYTES:
            break
    return page


def _page_of_study(folder: Path, version: str | None) -> str:
    row, notes = read_study(Path(folder))
    return render_study(study_content(row, Path(folder).resolve().name, notes), version)


def _write(path: Path, page: str) -> Path:
    write_text(path, page)
    return path


def build(runs: Sequence[RunData], detail: Detail = LEVELS[0]) -> dict[str, Any]:
    """The content of the report on ``runs[0]``, compared with the others, as plain JSON values with cleaned texts."""
    run = runs[0]
    names = domain_names(run)
    domains = names[: detail.domains]
    notes = [note for other in runs for note in _notes(other, runs)]
    if len(names) > len(domains):
        notes.append(f"{len(names) - len(domains)} of {len(names)} domains are left out to keep the page readable.")
    return {
        "run": overview(run, domains),
        "evaluation": evaluation(run, domains),
        "comparison": comparison(runs, domains),
        "diagnosis": diagnosis(run, domains, detail),
        "recovery": recovery(run, domains, detail),
        "curves": domain_curves(run, domains, detail),
        "surgery": surgery_curves(run, domains, detail),
        "cosines": module_cosines(run.grams, detail),
        "samples": samples(run, domains, detail),
        "configuration": clean(masked_names(run.config_text), 40_000),
        "environment": {clean(key, 60): clean(_plain(value), 2000) for key, value in _facts(run).items()},
        "notes": notes,
    }


def _notes(run: RunData, runs: Sequence[RunData]) -> list[str]:
    return [f"{run.name}: {note}" if len(runs) > 1 else note for note in run.notes]


def _facts(run: RunData) -> dict[str, Any]:
    command = run.environment.get("command")
    shown = masked_command([str(part) for part in command]) if isinstance(command, list) else command
    return {**run.environment, "command": shown} if "command" in run.environment else run.environment


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
