"""Reward ``reasoning_gym``: the score of a reasoning-gym task for its own rows.

    {"prompt": "State the final answer to ...: -5 * -6", "entry": {"answer": "30", "metadata": {...}, ...}}
                                                                              completion "30" -> 1.0

The ``reasoning_gym`` source makes such rows. Some tasks give small rewards to any text. Some raise on text they
cannot parse; such a completion scores 0.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from counterpoint.errors import MissingExtraError, RewardError
from counterpoint.rewards._base import Reward, Row

_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, SyntaxError, AssertionError)
"""What tasks raise on answers that they cannot parse."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)

Scorer = Callable[[str, Mapping[str, Any]], float]


class ReasoningGymReward(Reward):
    """What the row's task gives the last ``<answer>`` block of a completion, or else the whole completion; in [0, 1].

    Raises:
        MissingExtraError: reasoning-gym is not installed.
    """

    columns: ClassVar[tuple[str, ...]] = ("entry",)

    def __init__(self) -> None:
        try:
            from reasoning_gym import get_score_answer_fn
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_extra("The reward reasoning_gym", "reasoning-gym") from error
        self.__name__ = "reasoning_gym"
        self._scorer_of = get_score_answer_fn
        self._scorers: dict[str, Scorer] = {}

    def prepare(self, row: Row) -> tuple[Scorer, Mapping[str, Any]]:
        """The task's scorer and its entry, from the task that the entry names."""
        entry = row["entry"]
        metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
        task = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if not isinstance(task, str):
            raise RewardError(
                "'entry' has no metadata.source_dataset, so its task is unknown. Use a reasoning_gym source."
            )
        if task not in self._scorers:
            try:
                self._scorers[task] = self._scorer_of(task)
            except ValueError as error:
                raise RewardError(f"{error}. Use a task that the installed reasoning-gym has.") from error
        return self._scorers[task], entry

    def score(self, text: str, prepared: tuple[Scorer, Mapping[str, Any]]) -> float:
        """The task's score; 0 where it cannot parse the answer."""
        scorer, entry = prepared
        found = _ANSWER.findall(text)
        try:
            return float(scorer((found[-1] if found else text).strip(), entry))
        except _REFUSALS:
            return 0.0
