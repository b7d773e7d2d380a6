"""Reward ``pocket``: the toy domains' own scoring.

{"prompt": "12+7=", "task": "math", "answer": "19"}      completion "19" -> 1.0
"""

from typing import Any, ClassVar

from counterpoint.errors import RewardError, nearest
from counterpoint.rewards._base import Reward, Row


class PocketReward(Reward):
    """What ``counterpoint.pocket.tasks`` gives a completion for a row that it generated."""

    columns: ClassVar[tuple[str, ...]] = ("task", "answer")
    optional_columns: ClassVar[tuple[str, ...]] = ("length",)

    def __init__(self) -> None:
        # Imported here, so that listing and building other rewards does not load the toy domains.
        from counterpoint.pocket.dial import ALL_TASKS

        self.__name__ = "pocket"
        self._tasks = ALL_TASKS

    def prepare(self, row: Row) -> Row:
        """The row itself, when its task is known."""
        if row["task"] not in self._tasks:
            raise RewardError(f"unknown pocket task {row['task']!r}; {nearest(str(row['task']), self._tasks)}")
        return row

    def score(self, text: str, prepared: Row) -> float:
        """The task's score, in [0, 1]."""
        return float(self._tasks[prepared["task"]].score(prepared, text))

    def _rows(self, count: int, prompts: Any, columns: Any) -> list[dict[str, Any]]:
        # The tasks know their own columns: every list of the right length is handed on.
        super()._rows(count, prompts, columns)
        names = [name for name, values in columns.items() if isinstance(values, list | tuple) and len(values) == count]
        rows: list[dict[str, Any]] = [{name: columns[name][index] for name in names} for index in range(count)]
        if prompts is not None:
            for row, prompt in zip(rows, prompts, strict=True):
                row.setdefault("prompt", prompt)
        return rows
