"""What a run wrote down about its behaviour, in order: stages, and every domain's evaluation at every moment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs import RunDirectory
from counterpoint.stats import Scores

Line = Mapping[str, Any]


@dataclass(frozen=True)
class TrainedStage:
    """Training on ``domains`` from ``first_step`` (exclusive) to ``last_step`` (inclusive)."""

    index: int
    domains: tuple[str, ...]
    first_step: int
    last_step: int
    kind: str = "train"
    """``refresh`` where a watched run brought back a domain that had fallen: no stage of the domain's own."""


@dataclass(frozen=True)
class History:
    """A run's lines, by domain and step. ``steps`` are those with an evaluation of every domain, in order."""

    name: str
    domains: tuple[str, ...]
    stages: tuple[TrainedStage, ...]
    steps: tuple[int, ...]
    evaluations: Mapping[tuple[str, int], Line]
    metrics: Sequence[Line]
    samples: Sequence[Line]

    def scores(self, domain: str, step: int) -> Scores | None:
        """The mean score of every held-out prompt of ``domain`` at ``step``; None where it was not evaluated."""
        line = self.evaluations.get((domain, step))
        return None if line is None else line["scores"]

    def known_scores(self, domain: str, step: int) -> Scores:
        """The same where it is known that the domain was evaluated."""
        found: Scores = self.evaluations[domain, step]["scores"]
        return found

    def moment(self, step: int) -> str:
        """What people call this step: ``before``, ``after code``, or ``step 60`` within a stage."""
        if step == 0:
            return "before"
        ended = next((stage for stage in self.stages if stage.last_step == step), None)
        if ended is None:
            return f"step {step}"
        return f"after {ended.domains[0]}" if len(ended.domains) == 1 else "after training"


def read_history(run: RunDirectory) -> History:
    """The history of ``run``, finished or not.

    Raises:
        RunError: no evaluation of all domains is recorded, or a file cannot be read.
    """
    state = run.state
    lines = run.lines("evals.jsonl")
    _check_prompts(run, lines)
    # A later line of the same step replaces the earlier one: the end of a stage stands after what was seen during it.
    evaluations = {(str(line["domain"]), int(line["step"])): line for line in lines}
    domains = tuple(str(name) for name in state["domains"])
    steps = sorted({step for _, step in evaluations})
    whole = tuple(step for step in steps if all((domain, step) in evaluations for domain in domains))
    if not whole:
        raise RunError(
            f"{run.path / 'evals.jsonl'}: holds no evaluation of all of {', '.join(domains)}. Wait for the run's first "
            "one, or train with `evaluation.before: true`."
        )
    return History(
        name=str(state["name"]),
        domains=domains,
        stages=_stages(state["stages"]),
        steps=whole,
        evaluations=evaluations,
        metrics=run.lines("metrics.jsonl"),
        samples=run.lines("samples.jsonl"),
    )


def _check_prompts(run: RunDirectory, lines: Sequence[Line]) -> None:
    """Scores are compared prompt by prompt, so there must be as many at every step."""
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        expected = counts.setdefault(line["domain"], len(line["scores"]))
        if len(line["scores"]) != expected:
            raise RunError(
                f"{run.path / 'evals.jsonl'}, line {number}: holds {len(line['scores'])} scores of {line['domain']}; "
                f"an earlier line holds {expected}. Restore the file from a copy."
            )


def _stages(rows: Sequence[Line]) -> tuple[TrainedStage, ...]:
    ordered = sorted(rows, key=lambda row: row["last_step"])
    return tuple(
        TrainedStage(i, tuple(row["domains"]), row["first_step"], row["last_step"], row.get("kind", "train"))
        for i, row in enumerate(ordered)
    )
