"""Whether the first steps of a run tell that a domain will starve: no time is measured.

    python benchmarks/starvation.py studies/dial [--level 0.5] [--steps 5 10 20]

For every run of a study that has several domains: the outcome is whether its lowest domain ends below ``--level``; the
signs are means over the first steps of what every run logs. Quoted is the chance that a run which starves shows more of
a sign than one which does not (area under the ROC curve; 0.5 is chance), over pairs of runs of the same row, so that a
strategy which starves often does not look like a sign; p is a permutation test inside the rows.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from counterpoint.runs.run import Run
from counterpoint.runs.weights import means_of

Lines = Sequence[dict[str, Any]]
PERMUTATIONS = 2000


def means(lines: Lines, prefix: str) -> dict[str, float]:
    """Domain -> mean of ``prefix/DOMAIN`` over the steps that have it."""
    return means_of([prefix], lines)[prefix]


def gains(lines: Lines) -> dict[str, float]:
    """Domain -> mean reward of the second half of the steps less that of the first."""
    half = len(lines) // 2
    before, after = means(lines[:half], "reward"), means(lines[half:], "reward")
    return {name: after[name] - before[name] for name in before.keys() & after.keys()}


SIGNS: dict[str, Callable[[Lines], float]] = {
    "lowest reward is low": lambda lines: -min(means(lines, "reward").values()),
    "a domain falls": lambda lines: -min(gains(lines).values()),
    "domains part: gains differ": lambda lines: max(gains(lines).values()) - min(gains(lines).values()),
    "least part of the update is small": lambda lines: -min(means(lines, "share_update").values()),
    "least weight in the loss is small": lambda lines: -min(means(lines, "effective_weight").values()),
    "least part of the gradient is small": lambda lines: -min(means(lines, "share_gradient").values()),
    "prompts teach nothing": lambda lines: max(means(lines, "zero_advantage").values()),
    "conflicts: cosine is low": lambda lines: (
        -statistics.fmean(
            [value for line in lines for key, value in line.items() if key.startswith("cosine/") and value is not None]
        )
    ),
}


def auc(rows: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float:
    """Share of pairs of one row, one starved and one not, in which the starved run shows more; ties count half."""
    won = total = 0.0
    for values, starved in rows:
        for value, yes in zip(values, starved, strict=True):
            for other, no in zip(values, starved, strict=True):
                if yes and not no:
                    total += 1
                    won += (value > other) + 0.5 * (value == other)
    return won / total if total else float("nan")


def p_value(rows: Sequence[tuple[Sequence[float], Sequence[bool]]]) -> float:
    """How often outcomes that are dealt out anew inside each row give an area as far from one half."""
    found, rng = abs(auc(rows) - 0.5), random.Random(0)
    as_far = sum(
        abs(auc([(values, rng.sample(starved, len(starved))) for values, starved in rows]) - 0.5) >= found - 1e-12
        for _ in range(PERMUTATIONS)
    )
    return (as_far + 1) / (PERMUTATIONS + 1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of the study")
    parser.add_argument("--level", type=float, default=0.5, help="a lowest domain below this is starved")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20], help="first steps that are looked at")
    options = parser.parse_args()
    runs: dict[str, list[tuple[Lines, bool]]] = {}
    for folder in sorted((options.study / "runs").iterdir()):
        if not (folder / "metrics.jsonl").is_file():
            continue
        run = Run.open(folder)
        ends = [line["mean"] for (_, step), line in run.evaluations.items() if step == run.stages[-1].last_step]
        if len(ends) == len(run.domains) > 1:
            row = folder.name.rsplit("-seed-", 1)[0]
            runs.setdefault(row, []).append((run.metrics, min(ends) < options.level))
    for row, own in runs.items():
        print(f"{row}: {sum(starved for _, starved in own)} of {len(own)} runs starve a domain")
    print(f"\n{'sign':38}" + "".join(f"{f'{steps} steps':>16}" for steps in options.steps))
    for name, sign in SIGNS.items():
        cells = []
        for steps in options.steps:
            rows = [([sign(lines[:steps]) for lines, _ in own], [bad for _, bad in own]) for own in runs.values()]
            cells.append(f"{auc(rows):8.2f} p {p_value(rows):.3f}")
        print(f"{name:38}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
