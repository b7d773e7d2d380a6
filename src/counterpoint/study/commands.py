"""The commands of a job: each does one thing that is whole or not there, so that a job goes on where it stopped."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.errors import RunError
from counterpoint.runs import RunDirectory
from counterpoint.study.folder import StudyFolder
from counterpoint.study.jobs import Job
from counterpoint.study.schema import BaseRow, MergeRow, RefreshRow, RollbackRow

SCORES = "scores.jsonl"
"""Evaluations of a job that is no training run, beside its checkpoint."""


@dataclass(frozen=True)
class Command:
    """Arguments of ``counterpoint``, and whether what they make is there already."""

    arguments: Callable[[], list[str]]
    is_done: Callable[[], bool]


def commands_of(job: Job, folder: StudyFolder) -> list[Command]:
    """What a job does, in order. Arguments are made when they are needed, for they name what earlier jobs left."""
    if job.trains:
        return [Command(lambda: _train(job, folder), lambda: is_trained(folder.run(job.id)))]
    making = [] if isinstance(job.settings, BaseRow) else [_making(job, folder)]
    return [*making, _evaluating(job, folder)]


def checkpoint_of(job: Job, folder: StudyFolder) -> Path:
    """The model that a job left.

    Raises:
        RunError: it is not there.
    """
    return last_checkpoint(folder.run(job.id)) if job.trains else folder.run(job.id) / "checkpoint"


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
        state.unlink()


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


def _making(job: Job, folder: StudyFolder) -> Command:
    out = checkpoint_of(job, folder)
    makers = {MergeRow: _merge, RefreshRow: _refresh, RollbackRow: _rollback}
    return Command(lambda: makers[type(job.settings)](job, folder, out), (out / "config.json").is_file)


def _merge(job: Job, folder: StudyFolder, out: Path) -> list[str]:
    row = job.settings
    assert isinstance(row, MergeRow)
    experts = [str(last_checkpoint(folder.run(need))) for need in job.needs]
    given = {"scale": row.scale, "density": row.density}
    options = _options({name: value for name, value in given.items() if value is not None})
    return ["merge", job.config.model.path, *experts, "--method", row.method, *options, "--output", str(out)]


def _refresh(job: Job, folder: StudyFolder, out: Path) -> list[str]:
    raise NotImplementedError


def _rollback(job: Job, folder: StudyFolder, out: Path) -> list[str]:
    raise NotImplementedError


def _options(options: dict[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, list) else [value]:
            if item is True:
                yield option
            elif item is False:
                yield f"--no-{name.replace('_', '-')}"
            else:
                yield from (option, item if isinstance(item, str) else json.dumps(item))
