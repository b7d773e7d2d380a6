"""A job that has started keeps its settings: a table of runs that differ in more than it says would mislead."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from counterpoint.config import Config, load_config
from counterpoint.errors import CounterpointError, RunError
from counterpoint.masking import masked_data
from counterpoint.study.folder import JobRecord, StudyFolder
from counterpoint.study.jobs import Job
from counterpoint.study.schema import KINDS, Row

_WORDS_ONLY = {"description", "seeds", "set", "strategy", "orders", "steps"}
"""Keys of a row that change no model, or do it through the configuration."""


def check_unchanged(jobs: Sequence[Job], folder: StudyFolder) -> None:
    """Refuses to go on where a job that has started would now run with other settings.

    Raises:
        RunError: which keys of which jobs have changed, and what to do.
    """
    lines = []
    for job in jobs:
        record = folder.record(job.id)
        if record is not None and (changes := list(_changes(job, folder, record))):
            lines.append(f"  {job.id}: {'; '.join(changes)}")
    if lines:
        raise RunError(
            f"{folder.path}: settings have changed since these were run:\n" + "\n".join(lines) + "\nUndo the change, "
            "give the row another name, or the study (its key `name`, or --name) for an altogether new one."
        )


def _changes(job: Job, folder: StudyFolder, record: JobRecord) -> Iterator[str]:
    try:
        before = load_config(folder.config(job.id))
    except CounterpointError as error:
        yield f"its configuration cannot be read any more ({error})"
        return
    yield from _differences(_plain(before), _plain(job.config))
    yield from _differences(_row(KINDS[record.settings["kind"]].model_validate(record.settings)), _row(job.settings))


def _plain(config: Config) -> dict[str, Any]:
    """What shapes a run: all but the folder of the runs, which may have been moved."""
    return config.model_dump(mode="json", exclude={"run": {"dir"}})


def _row(row: Row) -> dict[str, Any]:
    plain: dict[str, Any] = masked_data(row.model_dump(mode="json", exclude=_WORDS_ONLY))
    return plain


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else str(key))
    elif before != now:
        yield f"{path} was {before!r} and is {now!r}"
