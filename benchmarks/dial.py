"""The cells of the dial study: the same rows with another cue, learning rate, batch or capacity; no time is measured.

    python benchmarks/dial.py studies/dial-cells [--cells plain absent ...] [--seeds 8]

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

from counterpoint.stats import Estimate
from counterpoint.study import StudyFolder, load_study, summarize

STUDY = Path(__file__).parents[1] / "examples" / "pocket-dial-study.yaml"
ROWS: dict[str, Any] = {
    "base": "base",
    "mixed": "mixed",
    "mgs": "mgs",
}


def cue(value: str) -> dict[str, Any]:
    """Both domains with this cue."""
    return {"domains": {name: {"source": {"type": "pocket", "cue": value}} for name in ("short", "long")}}


CELLS: dict[str, dict[str, Any]] = {
    "hidden": {},
    "plain": cue("plain"),
    "absent": cue("absent"),
    "rate-1e-4": {"training": {"learning_rate": 1e-4}},
    "rate-5e-4": {"training": {"learning_rate": 5e-4}},
    "prompts-16": {"training": {"per_device_train_batch_size": 32}},
    "lora-2": {"model": {"path": "pocket", "lora": {"r": 2}}, "training": {"learning_rate": 2e-3}},
}


def write(cell: str, seeds: int, folder: Path) -> Path:
    """The study file of a cell."""
    study = yaml.safe_load(STUDY.read_text())
    for key, value in CELLS[cell].items():
        own = study["config"][key]
        study["config"][key] = own | value if isinstance(own, dict) and isinstance(value, dict) else value
    changes = {"name": cell, "seeds": study["seeds"][:seeds], "rows": ROWS, "contrasts": []}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{cell}.yaml"
    file.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return file


def tell(cell: str, file: Path, folder: Path) -> None:
    """The lines of one cell."""
    for row in summarize(load_study(file), StudyFolder(folder / cell)).rows:
        if row.worst is None or not row.seeds_planned:
            continue
        lowest, starved = limits(row.worst.score.mean, ".3f"), f"{row.worst.starved} of {len(row.seeds_done)}"
        print(f"{cell:12}{row.name:8}{lowest:24}{limits(row.worst.difference, '+.3f'):26}{starved}")


def limits(found: Estimate | None, form: str) -> str:
    """A number with its interval."""
    return "" if found is None else f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


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
    for cell, file in files.items():
        tell(cell, file, options.folder)


if __name__ == "__main__":
    main()
