"""How long the rest of a study takes, from the jobs that ended and the steps of those that run."""

import statistics
from collections.abc import Mapping, Sequence

from counterpoint.config import Config
from counterpoint.study.folder import JobRecord, StudyFolder
from counterpoint.study.jobs import Job


def num_steps(config: Config) -> int | None:
    """Optimizer steps of a run; None where passes over the rows decide."""
    strategy = config.strategy
    if strategy.sequential and strategy.steps:
        return strategy.steps * len(strategy.order or config.domains)
    steps = config.training.get("max_steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def seconds_left(
    unfinished: Sequence[Job],
    running: Mapping[str, float],
    records: Mapping[str, JobRecord],
    jobs: Mapping[str, Job],
    folder: StudyFolder,
    parallel: int,
) -> float | None:
    """About the seconds until all of ``unfinished`` has ended; None while nothing is known.

    Args:
        unfinished: jobs that run or wait.
        running: seconds so far of those that run.
        records: the jobs that ended.
        jobs: all jobs by id.
        folder: of the study.
        parallel: jobs at a time.
    """
    rates = [_rate(jobs[r.id], r.seconds, 1.0) for r in records.values() if r.status == "done" and r.id in jobs]
    rates += [_rate(jobs[name], seconds, _part_done(jobs[name], folder)) for name, seconds in running.items()]
    known = [rate for rate in rates if rate is not None]
    if not known:
        return None
    rate = statistics.median(known)
    others = [r.seconds for r in records.values() if r.status == "done" and r.id in jobs and not jobs[r.id].trains]
    other = statistics.median(others) if others else 0.0
    left = 0.0
    for job in unfinished:
        whole = rate * (num_steps(job.config) or 1) if job.trains else other
        left += max(0.0, whole - running.get(job.id, 0.0))
    return left / min(parallel, max(1, len(unfinished)))


def _rate(job: Job, seconds: float, part: float) -> float | None:
    """Seconds a step, of a training run of which ``part`` is done."""
    steps = num_steps(job.config) or 1
    return seconds / (part * steps) if job.trains and part > 0 else None


def _part_done(job: Job, folder: StudyFolder) -> float:
    metrics = folder.run(job.id) / "metrics.jsonl"
    steps = num_steps(job.config)
    if not job.trains or not steps or not metrics.is_file():
        return 0.0
    return min(1.0, metrics.read_bytes().count(b"\n") / steps)
