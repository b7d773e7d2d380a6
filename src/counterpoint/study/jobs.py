"""What a study runs: one job per row and seed (and domain, for experts), with the jobs it needs before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from counterpoint.config import Config
from counterpoint.study.load import Study
from counterpoint.study.schema import BaseRow, ExpertsRow, MergeRow, RefreshRow, RollbackRow, Row, TrainRow


@dataclass(frozen=True)
class Job:
    """One model of a study: trained or made, and evaluated on all domains.

    Attributes:
        id: also the name of its folder.
        seed: None for the base, which has none.
        domain: the expert's; empty elsewhere.
        needs: ids of the jobs whose models this one is made of.
    """

    id: str
    row: str
    seed: int | None
    domain: str
    settings: Row
    config: Config
    needs: tuple[str, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether it is a plain training run."""
        return isinstance(self.settings, TrainRow | ExpertsRow)


def plan_jobs(study: Study, runs: Path) -> list[Job]:
    """Every job of ``study``, those of the first seed first, so that a study cut short compares what it has.

    Args:
        study: the study.
        runs: the folder of its runs.
    """
    jobs = [job for name in study.rows for job in _jobs_of(study, name, runs)]
    order = {seed: index for index, seed in enumerate(study.config.seeds)}
    return sorted(jobs, key=lambda job: -1 if job.seed is None else order.get(job.seed, len(order)))


def job_id(row: str, seed: int | None, domain: str = "") -> str:
    """The name of a job and of its folder."""
    return "-".join([row, *([domain] if domain else []), *([] if seed is None else ["seed", str(seed)])])


def _jobs_of(study: Study, name: str, runs: Path) -> Iterator[Job]:
    row = study.rows[name]
    for seed in (None,) if isinstance(row, BaseRow) else study.seeds(name):
        for domain in study.domains if isinstance(row, ExpertsRow) else ("",):
            identity = job_id(name, seed, domain)
            config = _named(study.configs[name, domain], identity, seed, runs)
            yield Job(identity, name, seed, domain, row, config, tuple(_needs(study, row, seed)))


def _needs(study: Study, row: Row, seed: int | None) -> Iterator[str]:
    if isinstance(row, MergeRow):
        for domain in study.domains:
            yield job_id(row.of, seed, domain)
    elif isinstance(row, RefreshRow | RollbackRow):
        yield job_id(row.of, seed)


def _named(config: Config, identity: str, seed: int | None, runs: Path) -> Config:
    update = {"dir": str(runs), "name": identity} | ({} if seed is None else {"seed": seed})
    return config.model_copy(update={"run": config.run.model_copy(update=update)})
