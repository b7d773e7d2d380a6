"""Does second order predict damage? Predicted beside measured over every sequential run of a study.

    python benchmarks/damage.py studies/pocket [--surrogate likelihood] [--json FILE]

For every run with several stages, and every stage but the last: the edit of the next stage (``next``) and of all
later stages together (``end``), the damage that first and second order predict for the stage's domain, the rise of its
surrogate loss that was measured, and the change of its held-out reward in the run's own evaluations. Printed are the
pairs, Pearson's and Spearman's correlations over them with 95 % intervals from resampling whole runs, and the median of
|difference| / |measured|. No time is measured.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from counterpoint.cli.running import quiet_libraries

quiet_libraries(offline=True)

from counterpoint.diagnosis import DamageOptions, damage
from counterpoint.models import threads_for
from counterpoint.runs import RunDirectory

DRAWS = 2000


@dataclass(frozen=True)
class Case:
    """One domain of one run and one later edit; losses per completion token, ``reward`` the change of the mean."""

    run: str
    domain: str
    edit: str
    relative_norm: float
    first: float
    second: float
    measured: float
    difference_low: float
    difference_high: float
    reward: float

    @property
    def predicted(self) -> float:
        """First and second order together."""
        return self.first + self.second


def sequential_runs(study: Path) -> list[RunDirectory]:
    """The finished runs of the study that have several stages."""
    runs = [RunDirectory.open(path.parent, write=False) for path in sorted(study.glob("runs/*/run.json"))]
    return [run for run in runs if run.state["status"] == "done" and len(run.state["stages"]) > 1]


def cases_of(run: RunDirectory, options: DamageOptions) -> Iterator[Case]:
    """Every stage's domain with the next stage's edit and with that of all later stages."""
    stages = run.state["stages"]
    rewards = {(line["step"], line["domain"]): line["mean"] for line in run.lines("evals.jsonl")}
    for index, stage in enumerate(stages[:-1]):
        ends = {"next": stages[index + 1], "end": stages[-1]} if index + 2 < len(stages) else {"next": stages[-1]}
        (domain,) = stage["domains"]
        for edit, later in ends.items():
            base, after = run.path / stage["checkpoint"], run.path / later["checkpoint"]
            found = damage(run.path, base, after, domain, options=options)
            assert found.first is not None
            assert found.second is not None
            assert found.measured is not None
            assert found.difference is not None
            yield Case(
                run=run.path.name,
                domain=domain,
                edit=edit,
                relative_norm=found.relative_edit_norm,
                first=found.first.value,
                second=found.second.value,
                measured=found.measured.value,
                difference_low=found.difference.low,
                difference_high=found.difference.high,
                reward=rewards[later["last_step"], domain] - rewards[stage["last_step"], domain],
            )


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Correlation of the ranks."""
    return statistics.correlation(ranks(first), ranks(second))


Correlation = Callable[[Sequence[float], Sequence[float]], float]


def resampled(cases: Sequence[Case], first: str, second: str, correlate: Correlation) -> tuple[float, float, float]:
    """A correlation with its 95 % interval over runs drawn with replacement."""
    by_run = [list(group) for _, group in itertools.groupby(cases, key=lambda case: case.run)]
    generator = random.Random(0)

    def of(chosen: Sequence[Case]) -> float:
        return correlate([getattr(case, first) for case in chosen], [getattr(case, second) for case in chosen])

    draws = sorted(of([c for _ in by_run for c in generator.choice(by_run)]) for _ in range(DRAWS))
    return of(cases), draws[int(0.025 * DRAWS)], draws[int(0.975 * DRAWS)]


def show(cases: Sequence[Case]) -> None:
    """Prints pairs and correlations."""
    print(
        f"{'run':32}{'domain':9}{'edit':6}{'|d|/|w|':>8}{'first':>9}{'second':>9}{'sum':>9}{'measured':>10}{'reward':>8}"
    )
    for case in cases:
        print(
            f"{case.run:32}{case.domain:9}{case.edit:6}{case.relative_norm:8.3f}{case.first:+9.4f}{case.second:+9.4f}"
            f"{case.predicted:+9.4f}{case.measured:+10.4f}{case.reward:+8.3f}"
        )
    pairs = [("predicted", "measured"), ("second", "measured"), ("first", "measured"), ("relative_norm", "measured")]
    for first, second in [*pairs, ("predicted", "reward"), ("second", "reward"), ("measured", "reward")]:
        for name, correlate in (("Pearson", statistics.correlation), ("Spearman", spearman)):
            value, low, high = resampled(cases, first, second, correlate)
            print(f"{first:>14} and {second:9}{name:9}{value:+.2f} [{low:+.2f}, {high:+.2f}]")
    errors = [abs(case.predicted - case.measured) / abs(case.measured) for case in cases]
    noise = sum(case.difference_low <= 0 <= case.difference_high for case in cases)
    print(f"median |sum - measured| / |measured| {statistics.median(errors):.2f} over {len(cases)} cases;", end=" ")
    print(f"the difference is within noise in {noise}.")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a study")
    parser.add_argument("--surrogate", choices=("policy", "likelihood"), default="likelihood")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the cases there, as JSON lines")
    arguments = parser.parse_args()
    runs = sequential_runs(arguments.study)
    if len(runs) < 2:
        sys.exit(f"{arguments.study}: {len(runs)} finished sequential runs; correlations need at least 2.")
    options = DamageOptions(
        surrogate=arguments.surrogate,
        baseline="domain",  # within a prompt a domain that is nearly solved has no signal
        prompts=arguments.prompts,
        samples=4,
        draws=1,
        scales=(1.0,),
    )
    cases: list[Case] = []
    with threads_for(0):
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.path.name}", file=sys.stderr)
            cases += cases_of(run, options)
    if arguments.json is not None:
        arguments.json.write_text("".join(json.dumps(asdict(case)) + "\n" for case in cases))
    show(cases)


if __name__ == "__main__":
    main()
