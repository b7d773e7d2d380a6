"""Reward ``instructions``: how many of a prompt's verifiable instructions the completion follows.

    {"prompt": "Write two sentences about rain, without commas.",
     "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    completion "It rains. We stay in."    1.0

The checks are those of IFEval (Zhou et al. 2023) and IFBench (Pyatkin et al. 2025), from the package ``if-verifiable``
with the corrections of ``_corrected``.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.errors import RewardError, nearest
from counterpoint.rewards._base import Reward, Row, message_text, one_of, shorten
from counterpoint.rewards._checkers import build_checker, isolated, load_checkers, missing_data
from counterpoint.rewards._regions import final_answer
from counterpoint.rewards.sandbox._scorers import scorers

MODES = ("fraction", "all")

# What the checkers, which are not ours, raise on arguments that they cannot use.
_CHECKER_FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, re.error)
_SECONDS = 5.0


@dataclass(frozen=True)
class _Instructions:
    """A row's instructions: names with arguments, and the prompt that some of them look at."""

    named: list[tuple[str, dict[str, Any]]]
    prompt: str | None


class InstructionsReward(Reward):
    """The share of the row's instructions that the completion follows, or 1 for all of them.

    Arguments:
        mode: ``fraction`` or ``all``.
        loose: Also counts an instruction that is followed after dropping the first or last line or all asterisks, as
            IFEval's loose accuracy does.
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ("instruction_id_list", "kwargs")
    optional_columns: ClassVar[tuple[str, ...]] = ("prompt",)

    def __init__(self, mode: str = "fraction", loose: bool = False, closed_thought: bool = False) -> None:
        self.__name__ = "instructions"
        self.mode = one_of("mode", mode, MODES)
        self.loose = loose
        self.closed_thought = closed_thought
        self._checkers = load_checkers()

    def prepare(self, row: Row) -> _Instructions:
        """The row's instructions, checked. ``RewardError``: one is unknown, or its data is not installed."""
        ids, arguments = row["instruction_id_list"], _decoded(row["kwargs"])
        if not isinstance(ids, list | tuple) or not ids or not all(isinstance(id, str) for id in ids):
            raise RewardError(f"'instruction_id_list' must be a list of instruction ids, found {shorten(ids)}.")
        if not isinstance(arguments, list | tuple) or len(arguments) != len(ids):
            raise RewardError(
                f"'kwargs' must hold one mapping for each of the {len(ids)} instructions, found {shorten(arguments)}."
            )
        refused = {id: missing_data(id) for id in ids if missing_data(id)}
        if refused:
            names = "; ".join(f"{id} needs {', '.join(data)}" for id, data in refused.items())
            packages = " ".join(sorted({name for data in refused.values() for name in data}))
            raise RewardError(
                f"NLTK data is not installed: {names}. Install it (python -m nltk.downloader {packages}) "
                "or leave out the rows with these instructions."
            )
        prompt = row.get("prompt") if isinstance(row.get("prompt"), str) else None
        with isolated():
            named = [(id, self._arguments(id, given, prompt)) for id, given in zip(ids, arguments, strict=True)]
        return _Instructions(named, prompt)

    def _arguments(self, id: str, given: Any, prompt: str | None) -> dict[str, Any]:
        given = _decoded(given)
        if id not in self._checkers:
            raise RewardError(f"unknown instruction {id!r}; {nearest(id, self._checkers)}")
        if given is not None and not isinstance(given, Mapping):
            raise RewardError(f"'kwargs' of {id} must be a mapping, found {shorten(given)}.")
        # Rows that went through a table carry every argument of every instruction, most of them null.
        kwargs = {name: value for name, value in (given or {}).items() if value is not None}
        try:
            build_checker(self._checkers, id, kwargs, prompt)
        except _CHECKER_FAILURES as error:
            raise RewardError(f"'kwargs' of {id} cannot be used ({error}), found {shorten(kwargs)}.") from None
        return kwargs

    def score_all(self, texts: Sequence[str], prepared: Sequence[_Instructions]) -> list[float | None]:
        """The share of instructions followed, or with ``mode="all"`` whether all are; 0 for a text without any word.

        Without that rule signs alone would earn much: they hold no comma, no forbidden word and no detectable language.
        """
        answers = [final_answer(text, self.closed_thought) for text in texts]
        worded = [i for i, answer in enumerate(answers) if any(character.isalnum() for character in answer)]
        requests = [(prepared[i].named, prepared[i].prompt, self._variants(answers[i])) for i in worded]
        found = scorers("instructions").run(requests, _SECONDS)
        rewards: list[float | None] = [0.0] * len(texts)
        for i, followed in zip(worded, found, strict=True):
            rewards[i] = self._reward(followed)
        return rewards

    def _variants(self, text: str) -> list[str]:
        return _loose_variants(text) if self.loose else [text]

    def _reward(self, followed: list[bool] | bool | None) -> float | None:
        if not isinstance(followed, list):  # no turn, or no answer in time
            return None if followed is None else 0.0
        return float(all(followed)) if self.mode == "all" else sum(followed) / len(followed)

    def _rows(self, count: int, prompts: Sequence[Any] | None, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = super()._rows(count, prompts, columns)
        for row, prompt in zip(rows, prompts or [], strict=False):
            row.setdefault("prompt", prompt if isinstance(prompt, str) else message_text(prompt[-1]))
        return rows


def _decoded(value: Any) -> Any:
    """What a JSON text holds; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _loose_variants(text: str) -> list[str]:
    lines = text.split("\n")
    cuts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [variant for cut in cuts for variant in (cut, cut.replace("*", ""))]
