"""The cells of the dial study: two of its rows with another cue or learning rate; no time is measured.

    python benchmarks/dial.py studies/dial-cells [--cells plain absent ...] [--seeds 5]

Every cell is `examples/pocket-dial-study.yaml` with one thing changed and the rows below, run by `counterpoint study`,
which goes on where it stopped. The table has, for each cell and row, the lowest domain (mean over seeds with 95 %
interval), its difference from `mixed` and the seeds that starve a domain. Everything in it is exploratory.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from counterpoint.study import StudyFolder, load_study, summarize
from counterpoint.tables import Cell, Table

STUDY = Path(__file__).parents[1] / "examples" / "pocket-dial-study.yaml"
ROWS = {"base": "base", "mixed": "mixed", "mgs": "mgs"}


def cue(value: str) -> dict[str, Any]:
    """Both domains with this cue."""
    return {"domains": {name: {"source": {"type": "pocket", "cue": value}} for name in ("short", "long")}}


CELLS: dict[str, dict[str, Any]] = {
    "plain": cue("plain"),
    "absent": cue("absent"),
    "rate-1e-4": {"training": {"learning_rate": 1e-4}},
    "rate-5e-4": {"training": {"learning_rate": 5e-4}},
}


def write(cell: str, seeds: int, folder: Path) -> Path:
    """The study file of a cell."""
    study = yaml.safe_load(STUDY.read_text())
    for key, value in CELLS[cell].items():
        study["config"][key] |= value
    changes = {"name": cell, "seeds": study["seeds"][:seeds], "rows": ROWS, "contrasts": []}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{cell}.yaml"
    file.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return file


def lines_of(cell: str, file: Path, folder: Path) -> list[tuple[Cell, ...]]:
    """The rows of one cell's study."""
    rows = summarize(load_study(file), StudyFolder(folder / cell)).rows
    return [
        (cell, row.name, row.worst.score.mean, row.worst.difference, f"{row.worst.starved} of {len(row.seeds_done)}")
        for row in rows
        if row.worst is not None and row.seeds_planned
    ]


def main() -> None:
    """Runs the cells, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the studies, one for each cell")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--seeds", type=int, default=5, help="the first of the study's seeds")
    options = parser.parse_args()
    files = {cell: write(cell, options.seeds, options.folder) for cell in options.cells}
    for file in files.values():
        subprocess.run(
            [sys.executable, "-m", "counterpoint", "study", str(file), "--dir", str(options.folder)], check=True
        )
    rows = [line for cell, file in files.items() for line in lines_of(cell, file, options.folder)]
    columns, forms = ("cell", "row", "lowest domain", "- mixed", "starved"), {"lowest domain": ".3f", "- mixed": "+.3f"}
    Console().print(Table("The lowest domain over seeds [95 % interval]", columns, tuple(rows), forms))


if __name__ == "__main__":
    main()
