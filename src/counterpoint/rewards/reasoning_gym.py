"""Reward ``reasoning_gym``: the score of a reasoning-gym task for its own rows.

    {"prompt": "State the final answer to ...: -5 * -6", "entry": {"answer": "30", "metadata": {...}, ...}}
                                                                              completion "30" -> 1.0

The ``reasoning_gym`` source makes such rows. Some tasks give small rewards to any text. The scorers run in processes of
their own, for some of them evaluate answers as Python: here only literals and arithmetic are evaluated, and an answer
that a task cannot parse scores 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from counterpoint.errors import MissingExtraError, RewardError
from counterpoint.rewards._base import Reward, Row
from counterpoint.rewards._regions import final_answer
from counterpoint.rewards.sandbox._scorers import scorers

_SECONDS = 5.0


class ReasoningGymReward(Reward):
    """What the row's task gives a completion's answer, after the thought and in the last ``<answer>``; in [0, 1].

    Arguments:
        closed_thought: A completion without ``</think>`` scores 0.

    Raises:
        MissingExtraError: reasoning-gym is not installed.
    """

    columns: ClassVar[tuple[str, ...]] = ("entry",)

    def __init__(self, closed_thought: bool = False) -> None:
        try:
            from reasoning_gym import get_score_answer_fn
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_extra("The reward reasoning_gym", "reasoning-gym") from error
        self.__name__ = "reasoning_gym"
        self.closed_thought = closed_thought
        self._scorer_of = get_score_answer_fn
        self._known: set[str] = set()

    def prepare(self, row: Row) -> tuple[str, Mapping[str, Any]]:
        """The task that the entry names, and the entry."""
        entry = row["entry"]
        metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
        task = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if not isinstance(task, str):
            raise RewardError(
                "'entry' has no metadata.source_dataset, so its task is unknown. Use a reasoning_gym source."
            )
        if task not in self._known:
            try:
                self._scorer_of(task)
            except ValueError as error:
                raise RewardError(f"{error}. Use a task that the installed reasoning-gym has.") from error
            self._known.add(task)
        return task, entry

    def score_all(self, texts: Sequence[str], prepared: Sequence[tuple[str, Mapping[str, Any]]]) -> list[float | None]:
        """The tasks' scores; 0 where a task cannot parse the answer."""
        requests = [
            (task, final_answer(text, self.closed_thought), entry)
            for text, (task, entry) in zip(texts, prepared, strict=True)
        ]
        found = scorers("reasoning_gym").run(requests, _SECONDS)
        return [None if value is None else min(1.0, max(0.0, float(value))) for value in found]
