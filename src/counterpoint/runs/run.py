"""A run as those read it who judge it: stages, checkpoints, and every domain's score at every moment.

>>> run = Run.open("runs/sequential")  # doctest: +SKIP
>>> run.own_stage("math").last_step, run.former("math")  # doctest: +SKIP
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs.directory import RunDirectory
from counterpoint.runs.stages import Stage
from counterpoint.stats import Estimate, Scores, difference_interval

LEVEL = 0.05
"""Chance, over all comparisons of a run together, of calling any of them a change where there is none."""

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Since:
    """What became of ``domain`` from the end of its own, last stage (``first_step``) to the end of a later stage.

    ``since`` names the domains trained in between. ``change`` is paired by prompt, with its 95 % interval; the interval
    of ``corrected`` holds for all comparisons of the run at once (Bonferroni), and it alone decides.
    """

    domain: str
    since: tuple[str, ...]
    first_step: int
    last_step: int
    change: Estimate
    corrected: Estimate

    @property
    def fell(self) -> bool:
        """Whether the domain lost something beyond noise."""
        return self.corrected.high < 0


def changes_of(before: Scores, after: Scores, comparisons: int) -> tuple[Estimate, Estimate]:
    """The change with its 95 % interval, and with the one that holds for all ``comparisons`` at once (Bonferroni)."""
    change, corrected = (difference_interval(before, after, 1 - LEVEL / m) for m in (1, comparisons))
    return change, corrected


def total_tokens(
    counts: Sequence[tuple[float | None, float | None]], stages: Sequence[tuple[object, float | None]]
) -> float | None:
    """All tokens of a run: the logged count begins again with each stage, but for one that goes on after a refresh.

    Args:
        counts: number of the stage and the count that every step logged, in order; steps without a count are left out.
        stages: kind of every stage, and the steps of it that had been taken before it.
    """
    total, stage, previous = 0.0, None, 0.0
    last: dict[float | None, float] = {}
    known = [(now, count) for now, count in counts if count is not None]
    for now, count in known:
        if now != stage:
            previous = last.get(_continued(now, stages), 0.0)
        total += count if count < previous else count - previous
        last[now] = previous = count
        stage = now
    return total if known else None


def _continued(now: float | None, stages: Sequence[tuple[object, float | None]]) -> float | None:
    """The stage that stage ``now`` goes on with; -1 where it begins afresh."""
    if now is None or not 0 <= now < len(stages) or not stages[int(now)][1]:
        return -1
    return next((i for i in range(int(now) - 1, -1, -1) if stages[i][0] != "refresh"), -1)


class Run:
    """A run directory, finished or not, opened to be read.

    Raises:
        RunError: no run there, a file that cannot be read, or scores that cannot be compared prompt by prompt.
    """

    def __init__(self, path: Path, state: Mapping[str, Any], lines: Callable[[str], list[dict[str, Any]]]) -> None:
        self.path, self.state, self._lines = path, state, lines
        self.name = str(self.state["name"])
        self.status = str(self.state["status"])
        self.domains = tuple(str(name) for name in self.state["domains"])
        ordered = sorted(self.state["stages"], key=lambda entry: int(entry["last_step"]))
        self.stages = tuple(Stage.from_json(i, entry) for i, entry in enumerate(ordered))

    @classmethod
    def open(cls, path: "str | Path | Run") -> "Run":
        """The run at ``path``."""
        if isinstance(path, Run):
            return path
        directory = RunDirectory.open(path, write=False)
        return cls(directory.path, directory.state, directory.lines)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return self._lines("metrics.jsonl")

    @property
    def tokens(self) -> float | None:
        """Prompt and completion tokens of all stages; None where no step logged any."""
        counts = [(line.get("stage"), line.get("num_tokens")) for line in self.metrics]
        return total_tokens(counts, [(stage.kind, stage.taken) for stage in self.stages])

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of ``samples.jsonl``."""
        return self._lines("samples.jsonl")

    @cached_property
    def evaluations(self) -> dict[tuple[str, int], dict[str, Any]]:
        """The lines of ``evals.jsonl`` by domain and step; of two at one step the later one counts."""
        lines = self._lines("evals.jsonl")
        counts: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            expected = counts.setdefault(line["domain"], len(line["scores"]))
            if len(line["scores"]) != expected:
                raise RunError(
                    f"{self.path / 'evals.jsonl'}, line {number}: holds {len(line['scores'])} scores of "
                    f"{line['domain']}; an earlier line holds {expected}. Restore the file from a copy."
                )
        return {(str(line["domain"]), int(line["step"])): line for line in lines}

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Steps after which every domain was evaluated.

        Raises:
            RunError: there is none.
        """
        steps = sorted({step for _, step in self.evaluations})
        whole = tuple(step for step in steps if all((name, step) in self.evaluations for name in self.domains))
        if not whole:
            raise RunError(
                f"{self.path / 'evals.jsonl'}: holds no evaluation of all of {', '.join(self.domains)}. Wait for the "
                "run's first one, or train with `evaluation.before: true`."
            )
        return whole

    def scores(self, domain: str, step: int) -> Scores | None:
        """The mean score of every held-out prompt of ``domain`` at ``step``; None where it was not evaluated."""
        line = self.evaluations.get((domain, step))
        return None if line is None else line["scores"]

    def known_scores(self, domain: str, step: int) -> Scores:
        """The same where it is known that the domain was evaluated."""
        found: Scores = self.evaluations[domain, step]["scores"]
        return found

    def moment(self, step: int) -> str:
        """What people call this step: ``before``, ``after code``, ``after a refresh of math``, or ``step 60``."""
        if step == 0:
            return "before"
        ended = next((stage for stage in self.stages if stage.last_step == step), None)
        if ended is None:
            return f"step {step}"
        if ended.kind == "refresh":
            return f"after a refresh of {ended.domains[0]}"
        return f"after {ended.domains[0]}" if len(ended.domains) == 1 else "after training"

    def own_stage(self, domain: str) -> Stage | None:
        """The last stage of kind ``train`` that trained ``domain``: a refresh is no stage of the domain's own."""
        own = [stage for stage in self.stages if stage.kind == "train" and domain in stage.domains]
        return own[-1] if own else None

    def former(self, domain: str) -> Scores | None:
        """The domain's scores at the end of its own stage; None where it has none or was not evaluated there."""
        own = self.own_stage(domain)
        return None if own is None else self.scores(domain, own.last_step)

    def checkpoint(self, step: int) -> Path | None:
        """The checkpoint after ``step``; None where it is gone."""
        return dict(self.checkpoints).get(step)

    @cached_property
    def checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of every checkpoint that holds a model, oldest first."""
        return RunDirectory(self.path).checkpoints()

    @cached_property
    def since_own_stage(self) -> tuple[Since, ...]:
        """Every earlier domain after every later stage, refreshes included, in the order of the stages."""
        own = {name: stage for name in self.domains if (stage := self.own_stage(name)) is not None}
        cells = [
            (domain, mine, stage)
            for stage in self.stages
            for domain, mine in sorted(own.items(), key=lambda item: item[1].index)
            if mine.index < stage.index
            and self.scores(domain, mine.last_step) is not None
            and self.scores(domain, stage.last_step) is not None
        ]
        return tuple(self._since(domain, mine, stage, len(cells)) for domain, mine, stage in cells)

    def _since(self, domain: str, own: Stage, stage: Stage, comparisons: int) -> Since:
        between = [other for other in self.stages if own.index < other.index <= stage.index]
        names = tuple(dict.fromkeys(name for other in between for name in other.domains if name != domain))
        before, after = (self.known_scores(domain, step) for step in (own.last_step, stage.last_step))
        return Since(domain, names, own.last_step, stage.last_step, *changes_of(before, after, comparisons))

    @property
    def at_the_end(self) -> tuple[Since, ...]:
        """The same at the end of the run alone, in the order of the domains' own stages."""
        last = max((stage.last_step for stage in self.stages), default=0)
        return tuple(one for one in self.since_own_stage if one.last_step == last)

    def verdict(self) -> str:
        """What fell, and the command that comes next; empty where no stage came after another."""
        if not self.at_the_end:
            return ""
        fell = [
            f"{one.domain} {one.corrected.value:+.3f} [{one.corrected.low:+.3f}, {one.corrected.high:+.3f}]"
            for one in self.at_the_end
            if one.fell
        ]
        if not fell:
            return f"No domain is seen to fall after its own stage. To look closer: counterpoint diagnose {self.path}"
        return f"Fell after its own stage: {', '.join(fell)}. To get it back: counterpoint recover {self.path}"
