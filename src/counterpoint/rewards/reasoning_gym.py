"""The score of a reasoning-gym task for its own rows.

A row of the ``reasoning_gym`` source carries the task's entry, from which its scorer judges an answer::

    {"prompt": "State the final answer to ...: -5 * -6", "entry": {"question": ..., "answer": "30", "metadata": {...}}}

Some scorers give small rewards to any text, and one raises on text that is no number; such an answer scores 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterpoint.errors import MissingExtraError, RewardError
from counterpoint.rewards import completion_text

_REFUSALS = (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError, SyntaxError)
"""What scorers raise on answers that they cannot parse."""

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGymReward:
    """In [0, 1], as the task's own scorer has it; the answer is the last ``<answer>`` block, else the whole completion.

    Raises:
        MissingExtraError: reasoning-gym is not installed.
    """

    __name__ = "reasoning_gym"
    columns: tuple[str, ...] = ("entry",)
    optional_columns: tuple[str, ...] = ()

    def __init__(self) -> None:
        try:
            from reasoning_gym import get_score_answer_fn
        except ModuleNotFoundError as error:
            raise MissingExtraError.for_extra("The reward reasoning_gym", "reasoning-gym") from error
        self._scorer_for = get_score_answer_fn
        self._scorers: dict[str, Callable[..., float]] = {}

    def __call__(self, completions: Sequence[Any], entry: Sequence[Mapping[str, Any]], **_: Any) -> list[float | None]:
        """The score of every completion."""
        return [self._score(completion_text(text), item) for text, item in zip(completions, entry, strict=True)]

    def check_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse rows without a reasoning-gym entry."""
        for number, row in enumerate(rows, start=1):
            self._scorer(row["entry"], f"row {number}")

    def _score(self, text: str, entry: Mapping[str, Any]) -> float:
        found = _ANSWER.findall(text)
        answer = (found[-1] if found else text).strip()
        try:
            return float(self._scorer(entry, "entry")(answer, entry))
        except _REFUSALS:
            return 0.0

    def _scorer(self, entry: Mapping[str, Any], where: str) -> Callable[..., float]:
        metadata = entry.get("metadata") if isinstance(entry, Mapping) else None
        task = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
        if not isinstance(task, str):
            raise RewardError(
                f"reasoning_gym: {where} has no metadata.source_dataset, so its task is unknown. Use this reward "
                "with a reasoning_gym source."
            )
        if task not in self._scorers:
            try:
                self._scorers[task] = self._scorer_for(task)
            except ValueError as error:
                raise RewardError(
                    f"reasoning_gym: {where}: {error}. Use a task of the installed reasoning-gym."
                ) from error
        return self._scorers[task]
