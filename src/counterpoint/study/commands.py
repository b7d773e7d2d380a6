"""The commands of a job: each does one thing that is whole or not there, so that a job goes on where it stopped."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.registry import SEQUENTIAL
from counterpoint.runs import RunDirectory
from counterpoint.runs.records import Record, read_json
from counterpoint.runs.seals import remove_file
from counterpoint.study.folder import StudyFolder
from counterpoint.study.jobs import Job
from counterpoint.study.schema import BaseRow, MergeRow, RefreshRow, RollbackRow

SCORES = "scores.jsonl"
"""Evaluations of a job that is no training run, in its folder."""
MODEL = "checkpoint"
"""The model of a merge or a rollback, in its folder."""
ROLLBACK = "rollback.json"
REFRESH = "recovery/refresh.json"
"""Results of the two, in the job's folder; a refresh is a run directory of its own."""


class Made(Record):
    """What is asked of the result of a rollback or a refresh."""

    checkpoint: str | None
    stopped: str | None = None


@dataclass(frozen=True)
class Command:
    """Arguments of ``counterpoint``, and whether what they make is there already."""

    arguments: Callable[[], list[str]]
    is_done: Callable[[], bool]


def commands_of(job: Job, folder: StudyFolder) -> list[Command]:
    """What a job does, in order. Arguments are made when they are needed, for they name what earlier jobs left."""
    run = folder.run(job.id)
    match job.settings:
        case BaseRow():
            making = []
        case MergeRow():
            making = [Command(lambda: _merge(job, folder), (run / MODEL / "config.json").is_file)]
        case RefreshRow():
            making = [Command(lambda: _refresh(job, folder), lambda: _is_refreshed(run))]
        case RollbackRow():
            making = [Command(lambda: _rollback(job, folder), (run / ROLLBACK).is_file)]
        case _:
            return [Command(lambda: _train(job, folder), lambda: is_trained(run))]
    return [*making, _evaluating(job, folder)]


def checkpoint_of(job: Job, folder: StudyFolder) -> Path:
    """The model that a job made of others left; where there was nothing to mend, the one it started from.

    Raises:
        RunError: it is not there.
    """
    run = folder.run(job.id)
    if isinstance(job.settings, MergeRow):
        return run / MODEL
    written = _read(run / (ROLLBACK if isinstance(job.settings, RollbackRow) else REFRESH))["checkpoint"]
    if written is None:
        return last_checkpoint(folder.run(job.needs[0]))
    return run / MODEL if isinstance(job.settings, RollbackRow) else last_checkpoint(run)


def last_checkpoint(run: Path) -> Path:
    """The last checkpoint of a training run."""
    checkpoints = RunDirectory.open(run, write=False).checkpoints()
    if not checkpoints:
        raise RunError(f"{run}: its checkpoints are gone, and a row is made of them. Remove the folder to train again.")
    return checkpoints[-1][1]


def is_trained(run: Path) -> bool:
    """Whether the run is whole."""
    return (run / "run.json").is_file() and RunDirectory.open(run, write=False).state["status"] == "done"


def tidy(job: Job, folder: StudyFolder) -> None:
    """Removes the optimizer's state of a finished run: two thirds of a checkpoint, and of use only to resume."""
    for state in folder.run(job.id).glob("checkpoints/*/optimizer.pt"):
        remove_file(state.parent, state.name)


def _train(job: Job, folder: StudyFolder) -> list[str]:
    run = folder.run(job.id)
    if (run / "run.json").is_file():
        return ["train", "--resume", str(run)]
    if run.exists():  # killed before there was a run
        shutil.rmtree(run)
    return ["train", str(folder.config(job.id))]


def _evaluating(job: Job, folder: StudyFolder) -> Command:
    scores = folder.run(job.id) / SCORES

    def arguments() -> list[str]:
        model = [] if isinstance(job.settings, BaseRow) else ["--model", str(checkpoint_of(job, folder))]
        return ["eval", str(folder.config(job.id)), *model, "--output", str(scores)]

    return Command(arguments, scores.is_file)


def _merge(job: Job, folder: StudyFolder) -> list[str]:
    row = job.settings
    assert isinstance(row, MergeRow)
    out = folder.run(job.id) / MODEL
    experts = [str(last_checkpoint(folder.run(need))) for need in job.needs]
    if out.exists():  # killed between the scales that it chooses among
        shutil.rmtree(out)
    choosing = str(folder.config(job.id)) if isinstance(row.scale, list) else None
    given = {"scale": row.scale, "density": row.density, "config": choosing}
    options = _options({name: value for name, value in given.items() if value is not None})
    return ["merge", job.config.model.path, *experts, "--method", row.method, *options, "--out", str(out)]


def _refresh(job: Job, folder: StudyFolder) -> list[str]:
    row = job.settings
    assert isinstance(row, RefreshRow)
    source, out = folder.run(job.needs[0]), folder.run(job.id)
    if out.exists() and not (out / "run.json").is_file():  # killed before there was a run
        shutil.rmtree(out)
    own = _ends_of_stages(source).get(row.domain)
    reference = ["--reference", str(own)] if own is not None and "former" not in row.options else []
    return [
        *("refresh", str(folder.config(job.id)), "--model", str(last_checkpoint(source)), "--domain", row.domain),
        *(*reference, *_options(row.options), "--out", str(out)),
    ]


def _rollback(job: Job, folder: StudyFolder) -> list[str]:
    row = job.settings
    assert isinstance(row, RollbackRow)
    source, out = folder.run(job.needs[0]), folder.run(job.id)
    if (out / MODEL).exists():  # killed before its result was written
        shutil.rmtree(out / MODEL)
    ends = _ends_of_stages(source)
    options = {"seed": job.seed} | row.options
    return [
        *("rollback", str(folder.config(job.id)), "--before", str(ends[row.domain])),
        *("--after", str(last_checkpoint(source)), "--domain", row.domain, *_options(options)),
        *("--out", str(out / MODEL), "--json", str(out / ROLLBACK)),
    ]


def _ends_of_stages(run: Path) -> dict[str, Path]:
    """Domain -> the checkpoint at the end of its first stage, in the order of the stages of a sequential run."""
    state = RunDirectory.open(run, write=False).state
    ends: dict[str, Path] = {}
    for stage in state["stages"] if state["strategy"] == SEQUENTIAL else ():
        ends.setdefault(stage["domains"][0], run / stage["checkpoint"])
    return ends


def _is_refreshed(run: Path) -> bool:
    return (run / REFRESH).is_file() and _read(run / REFRESH).get("stopped") != "interrupted"


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, Made, f"Remove {path.parent} to run it again.")


def _options(options: dict[str, Any]) -> Iterator[str]:
    """Options of a command: true and false as flags, several numbers with commas, several names one by one."""
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield option if value else f"--no-{option.removeprefix('--')}"
        elif isinstance(value, list) and not any(isinstance(item, str) for item in value):
            yield from (option, ",".join(map(str, value)))
        else:
            for item in value if isinstance(value, list) else [value]:
                yield from (option, str(item))
