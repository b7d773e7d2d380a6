"""What a job of a study does, step by step; each step is whole or not there, so a job goes on where it stopped.

A run is trained by ``counterpoint train``. All else is done by these functions, in a process of its own::

    python -m counterpoint.study.child FOLDER JOB make        a merge, a refresh or a rollback
    python -m counterpoint.study.child FOLDER JOB evaluate    scores.jsonl of what was made, given, or the base
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from counterpoint.config import Config, load_config
from counterpoint.disk import write_text
from counterpoint.errors import RunError
from counterpoint.runs import Reporter
from counterpoint.runs.records import Record, read_json
from counterpoint.runs.run import Run
from counterpoint.study.jobs import Job, JobRecord, StudyFolder
from counterpoint.study.schema import KINDS, BaseRow, GivenRow, MergeRow, RefreshRow, RollbackRow, Row

SCORES = "scores.jsonl"
"""Evaluations of a job that is no training run, in its folder."""
MODEL = "checkpoint"
"""The model of a merge or a rollback, in its folder."""
ROLLBACK = "rollback.json"
REFRESH = "recovery/refresh.json"
"""Results of the two, in the job's folder; a refresh is a run directory of its own."""
SELECTION_PROMPTS = 64
"""Training prompts per domain that choose among the scales of a merge."""


class Made(Record):
    """What a study reads of the result of a rollback or a refresh."""

    checkpoint: str | None
    stopped: str | None = None


@dataclass(frozen=True)
class Step:
    """A part of a job, and whether what it makes is there already."""

    name: Literal["train", "make", "evaluate"]
    is_done: Callable[[], bool]


def steps_of(job: Job, folder: StudyFolder) -> list[Step]:
    """What a job does, in order."""
    run = folder.run(job.id)
    evaluate = Step("evaluate", (run / SCORES).is_file)
    match job.settings:
        case BaseRow() | GivenRow():
            return [evaluate]
        case MergeRow():
            return [Step("make", (run / MODEL / "config.json").is_file), evaluate]
        case RefreshRow():
            return [Step("make", lambda: _is_refreshed(run)), evaluate]
        case RollbackRow():
            return [Step("make", (run / ROLLBACK).is_file), evaluate]
        case _:
            return [Step("train", lambda: _is_trained(run))]


def _is_trained(run: Path) -> bool:
    return (run / "run.json").is_file() and Run.open(run).status == "done"


def _is_refreshed(run: Path) -> bool:
    return (run / REFRESH).is_file() and _made(run / REFRESH).get("stopped") != "interrupted"


def _made(path: Path) -> dict[str, Any]:
    return read_json(path, Made, f"Remove {path.parent} to run it again.")


def make(record: JobRecord, folder: StudyFolder) -> None:
    """Makes the model of a merge, a refresh or a rollback."""
    row, config = _row(record), load_config(folder.config(record.id))
    match row:
        case MergeRow():
            _merge(row, record, folder, config)
        case RefreshRow():
            _refresh(row, record, folder, config)
        case RollbackRow():
            _rollback(row, record, folder, config)


def evaluate(record: JobRecord, folder: StudyFolder) -> None:
    """Writes the scores of a job's model on the held-out prompts of every domain."""
    from counterpoint.engine import evaluate_model

    config = load_config(folder.config(record.id))
    path = _checkpoint(record, folder)
    if path is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(path)})})
    scores = evaluate_model(config)
    write_text(folder.run(record.id) / SCORES, "".join(json.dumps(score.to_json()) + "\n" for score in scores))


def _row(record: JobRecord) -> Row:
    return KINDS[record.settings["kind"]].model_validate(record.settings)


def _checkpoint(record: JobRecord, folder: StudyFolder) -> str | Path | None:
    """The model of a job that trains nothing; where there was nothing to mend, the one it started from."""
    run, row = folder.run(record.id), _row(record)
    match row:
        case GivenRow():
            assert isinstance(row.path, str)
            return row.path
        case MergeRow():
            return run / MODEL
        case RefreshRow() | RollbackRow():
            result = run / (ROLLBACK if isinstance(row, RollbackRow) else REFRESH)
            if _made(result)["checkpoint"] is None:
                return _last_checkpoint(folder.run(record.needs[0]))
            return run / MODEL if isinstance(row, RollbackRow) else _last_checkpoint(run)
    return None


def _last_checkpoint(run: Path) -> Path:
    checkpoints = Run.open(run).checkpoints
    if not checkpoints:
        raise RunError(f"{run}: its checkpoints are gone, and a row is made of them. Remove the folder to train again.")
    return checkpoints[-1][1]


def _own_checkpoint(run: Path, domain: str) -> Path | None:
    """The checkpoint at the end of the domain's own stage, where that stage was the domain's alone."""
    opened = Run.open(run)
    own = opened.own_stage(domain)
    return None if own is None or len(own.domains) > 1 else opened.checkpoint(own.last_step)


def _merge(row: MergeRow, record: JobRecord, folder: StudyFolder, config: Config) -> None:
    from counterpoint.merging import merge
    from counterpoint.study.scale import choose_scale

    out = folder.run(record.id) / MODEL
    experts = [_last_checkpoint(folder.run(need)) for need in record.needs]
    if out.exists():  # killed between the scales that it chooses among
        shutil.rmtree(out)

    def merged(scale: float | None, place: Path) -> Path:
        return merge(config.model.path, experts, place, method=row.method, scale=scale, density=row.density)

    if not isinstance(row.scale, list) or len(row.scale) == 1:
        merged(row.scale[0] if isinstance(row.scale, list) else row.scale, out)
        return
    for scale, score in choose_scale(merged, row.scale, config, SELECTION_PROMPTS, out, Reporter()):
        print(f"scale {scale:g}: {score:.3f} on {SELECTION_PROMPTS} training prompts per domain")


def _refresh(row: RefreshRow, record: JobRecord, folder: StudyFolder, config: Config) -> None:
    from counterpoint.recovery import RefreshOptions, refresh

    source, out = folder.run(record.needs[0]), folder.run(record.id)
    if out.exists() and not (out / "run.json").is_file():  # killed before there was a run
        shutil.rmtree(out)
    before = None if "former" in row.options else _own_checkpoint(source, row.domain)
    options = RefreshOptions(**_fields(row.options))
    refresh(_last_checkpoint(source), row.domain, config, before=before, out=out, options=options)


def _rollback(row: RollbackRow, record: JobRecord, folder: StudyFolder, config: Config) -> None:
    from counterpoint.recovery import RollbackOptions, rollback

    source, run = folder.run(record.needs[0]), folder.run(record.id)
    if (run / MODEL).exists():  # killed before its result was written
        shutil.rmtree(run / MODEL)
    before = _own_checkpoint(source, row.domain)
    if before is None:
        raise RunError(f"{source}: the checkpoint after {row.domain} is gone. Remove the folder to train again.")
    options = RollbackOptions(**_fields({"seed": record.seed} | row.options))
    rollback(before, _last_checkpoint(source), row.domain, config, out=run, options=options)


def _fields(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
