"""A run directory or a study as one self-contained HTML page.

>>> from counterpoint.report import write_report
>>> page = write_report(Path("runs/demo-mgs"), compare=[Path("runs/demo-mixed")])  # doctest: +SKIP

Never imports torch, so a report can be made where nothing can be trained.
"""

from collections.abc import Sequence
from pathlib import Path

from counterpoint.disk import write_text
from counterpoint.evaluation.comparison import Comparison
from counterpoint.report.page import render, render_checkpoints, render_comparison, render_study
from counterpoint.report.read import DIAGNOSIS, LEVELS, read_json, read_run
from counterpoint.report.run import build
from counterpoint.report.study import STUDY, read_study
from counterpoint.report.text import clean

__all__ = ["build", "is_study", "write_checkpoints", "write_comparison", "write_report", "write_study_report"]

MAX_BYTES = 5_900_000
"""The page stays below six megabytes, of which plotly.js takes 4.8."""


def write_report(run_dir: Path, *, compare: Sequence[Path] = ()) -> Path:
    """Writes ``report.html`` into ``run_dir`` and returns the page's path.

    Args:
        run_dir: a run directory; every file in it may be missing, unfinished or torn.
        compare: further run directories, compared with this one prompt by prompt.

    Raises:
        RunError: one of the paths is no run directory, or the report cannot be written.
    """
    runs = [read_run(Path(item)) for item in (run_dir, *compare)]
    for detail in LEVELS:
        page = render(build(runs, detail))
        if len(page.encode()) < MAX_BYTES:
            break
    return _write(Path(run_dir) / "report.html", page)


def write_study_report(folder: Path) -> Path:
    """Writes ``study.html`` into the folder of a study and returns the page's path.

    Raises:
        RunError: there is no ``study.json``, or the report cannot be written. A torn ``study.json`` gives a page that
            says so.
    """
    return _write(Path(folder) / "study.html", render_study(read_study(Path(folder))))


def write_checkpoints(folder: Path) -> Path:
    """Writes ``report.html`` on given checkpoints, from the ``diagnosis`` in ``folder``, and returns the page's path.

    Raises:
        RunError: the report cannot be written.
    """
    notes: list[str] = []
    files = {name: read_json(Path(folder) / "diagnosis" / f"{name}.json", notes) for name in DIAGNOSIS}
    return _write(Path(folder) / "report.html", render_checkpoints(files, notes))


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Writes ``compare.html``, ``.md``, ``.tex``, ``.csv`` and ``.json`` into ``folder`` and returns the page's path.

    Raises:
        RunError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = comparison.tables()
    texts = [*(table.to_markdown() for table in tables), *comparison.sentences()]
    write_text(folder / "compare.md", clean("\n\n".join(texts)) + "\n")
    write_text(folder / "compare.tex", clean("\n\n".join(table.to_latex() for table in tables)) + "\n")
    write_text(folder / "compare.csv", clean(comparison.long_table().to_csv()))
    comparison.write(folder / "compare.json")
    return _write(folder / "compare.html", render_comparison(comparison))


def is_study(path: Path) -> bool:
    """Whether ``path`` is the folder of a study."""
    return (Path(path) / STUDY).is_file()


def _write(path: Path, page: str) -> Path:
    write_text(path, page)
    return path
