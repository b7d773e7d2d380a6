"""What one job reached, read from the files that it left."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs import RunDirectory
from counterpoint.runs.records import CostLine, MeanLine, TimedScoreLine, read_lines
from counterpoint.study.commands import REFRESH, SCORES
from counterpoint.study.folder import JobRecord, StudyFolder
from counterpoint.study.jobs import Job
from counterpoint.study.statistics import Spread


@dataclass(frozen=True)
class Cost:
    """What a model took: optimizer steps, tokens seen (prompts and completions), seconds of making it.

    Seconds of a training run are those of its steps; evaluations and start-up, the same for all, are left out. Those of
    a merge or a rollback are all but the evaluation of what they made.
    """

    steps: float
    tokens: float
    seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.steps + other.steps, self.tokens + other.tokens, self.seconds + other.seconds)


@dataclass(frozen=True)
class Outcome:
    """The scores of one job by domain, with their intervals over prompts, and what it cost.

    ``own_stage`` holds, for a run of several stages, what each domain had right after its first one; the domain of the
    last stage is left out.
    """

    scores: dict[str, Spread]
    cost: Cost
    own_stage: dict[str, float] = field(default_factory=dict)


def read_outcome(job: Job, record: JobRecord, folder: StudyFolder) -> Outcome:
    """The outcome of a job that is done.

    Raises:
        RunError: its files are gone or incomplete.
    """
    run = folder.run(job.id)
    if job.trains:
        return _of_run(RunDirectory.open(run, write=False), list(job.config.domains))
    path, record_file = run / SCORES, folder.path / "jobs" / f"{job.id}.json"
    if not path.is_file():
        raise RunError(f"{path}: is gone. Remove {record_file}, and the job runs again.")
    lines = read_lines(path, TimedScoreLine, f"Remove the file and {record_file}, and the job runs again.")
    evaluating = sum(line["seconds"] for line in lines)
    return Outcome(_scores(lines, list(job.config.domains), path), _made_cost(run, record, evaluating))


def _of_run(run: RunDirectory, domains: Sequence[str]) -> Outcome:
    evaluations = run.lines("evals.jsonl", MeanLine)
    after = [line for line in evaluations if line["when"] == "after"]
    scores = _scores(after, domains, run.path)
    return Outcome(scores, _trained_cost(run), dict(_own_stages(run.state["stages"], evaluations)))


def _scores(lines: Sequence[Mapping[str, Any]], domains: Sequence[str], where: Path) -> dict[str, Spread]:
    found = {line["domain"]: Spread(line["mean"], line["low"], line["high"]) for line in lines}
    if missing := [name for name in domains if name not in found]:
        raise RunError(f"{where}: has no evaluation of {', '.join(missing)}. Remove the job's record to run it again.")
    return {name: found[name] for name in domains}


def _own_stages(
    stages: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, float]]:
    means = {(line["step"], line["domain"]): line["mean"] for line in evaluations if line["when"] in ("stage", "after")}
    seen = set()
    for stage in stages[:-1]:
        (domain, *others) = stage["domains"]
        at = stage["last_step"], domain
        if not others and domain not in seen and stage.get("kind", "train") == "train" and at in means:
            seen.add(domain)
            yield domain, means[at]


def _trained_cost(run: RunDirectory) -> Cost:
    lines = run.lines("metrics.jsonl", CostLine)
    fresh = {index for index, stage in enumerate(run.state["stages"]) if not stage.get("taken")}
    return Cost(len(lines), _tokens(lines, fresh), sum(line["step_time"] for line in lines))


def _tokens(lines: Sequence[Mapping[str, Any]], fresh: Container[int]) -> float:
    """All tokens of a run: the count starts again with each of the ``fresh`` stages."""
    total = previous = 0.0
    stage = None
    for line in lines:
        count = line["num_tokens"]
        again = (line["stage"] != stage and line["stage"] in fresh) or count < previous
        total += count if again else count - previous
        previous, stage = count, line["stage"]
    return total


def _made_cost(run: Path, record: JobRecord, evaluating: float) -> Cost:
    if (run / REFRESH).is_file() and (run / "run.json").is_file():
        return _trained_cost(RunDirectory.open(run, write=False))
    return Cost(0, 0, 0.0 if record.settings.get("kind") == "base" else max(0.0, record.seconds - evaluating))
