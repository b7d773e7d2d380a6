"""Rows of any source, before they are made into prompts."""

from itertools import count, islice
from typing import Any

from counterpoint.config import FileSource, HubSource, PocketSource, ReasoningGymSource
from counterpoint.domains.files import Row, read_file
from counterpoint.errors import DomainError, MissingExtraError, nearest
from counterpoint.inputs import LIBRARY_FAULTS

Source = PocketSource | FileSource | HubSource | ReasoningGymSource

_TRIES = 50  # draws per wanted test prompt before a pocket task counts as exhausted


def read_source(source: Source, limit: int | None) -> list[Row]:
    """The first ``limit`` rows of ``source`` for training.

    Raises:
        DomainError: the source is missing, unreadable or malformed.
        MissingExtraError: it needs a package that is not installed.
    """
    match source:
        case FileSource():
            return read_file(source, limit)
        case HubSource():
            return _hub(source, limit)
        case ReasoningGymSource():
            return _reasoning_gym(source, limit)
        case PocketSource():
            task = _pocket_task(source)
            return [task.generate("train", index) for index in range(min(source.size, limit or source.size))]


def read_pocket_test(source: PocketSource, size: int) -> list[Row]:
    """``size`` different held-out rows of a pocket task, or fewer if it has fewer."""
    task = _pocket_task(source)
    unique: dict[str, Row] = {}
    for index in islice(count(), size * _TRIES):
        row = task.generate("test", index)
        unique.setdefault(row["prompt"], row)
        if len(unique) == size:
            break
    return list(unique.values())


def _pocket_task(source: PocketSource) -> Any:
    from counterpoint.pocket.tasks import TASKS

    task = str(source.task)
    if task not in TASKS:
        raise DomainError(f"unknown pocket task {task!r}: {nearest(task, TASKS)} Set source.task.")
    return TASKS[task]


def _hub(source: HubSource, limit: int | None) -> list[Row]:
    import datasets

    try:
        data = datasets.load_dataset(source.path, source.config, split=source.split, revision=source.revision)
    except LIBRARY_FAULTS as error:  # offline, unknown id, gated, unknown configuration or split
        wanted = f"{source.path} (config {source.config}, split {source.split})"
        raise DomainError(
            f"the hub dataset {wanted} cannot be loaded: {error}. Check its id, config and split, and the network; "
            "a local copy is read with type: file."
        ) from error
    return data.select(range(min(limit or len(data), len(data)))).to_list()


def _reasoning_gym(source: ReasoningGymSource, limit: int | None) -> list[Row]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise MissingExtraError.for_extra("A reasoning_gym source", "reasoning-gym") from error
    if source.task not in DATASETS:
        raise DomainError(f"unknown reasoning_gym task {source.task!r}: {nearest(source.task, DATASETS)}")
    try:
        task = reasoning_gym.create_dataset(source.task, size=source.size, seed=source.seed, **source.options)
        rows = [task[index] for index in range(min(source.size, limit or source.size))]
    except LIBRARY_FAULTS as error:  # its tasks refuse options in many ways, some when they make a row
        raise DomainError(f"reasoning_gym task {source.task!r} refuses its options: {error}.") from error
    return [
        {"prompt": row["question"], "question": row["question"], "answer": row["answer"], "entry": row} for row in rows
    ]
