"""Reward ``choice``: multiple choice, answered by letter or by the option's text.

    {"prompt": "... (A) bank (B) library ...", "answer": "A", "choices": ["bank", "library", "department store"]}
    completion "The answer is (A)."    1.0        completion "A bank, of course."    1.0

A completion that names two options equally well answers neither: 0.
"""

import functools
import itertools
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, shorten
from counterpoint.rewards._choice_text import Choices, plain
from counterpoint.rewards._regions import final_answer

# A choice stands at the end; searching more of an endless reply would only take time.
_MAX_REPLY = 10_000


@dataclass(frozen=True)
class _Question:
    label: str
    options: dict[str, str]
    """Label -> text; empty where the row has no choices."""


class ChoiceReward(Reward):
    """1 when the completion chooses the right option, else 0.

    Arguments:
        strict: Only a reply that is nothing but the label counts (``B``, ``(B)``, ``B.``).
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)
    optional_columns: ClassVar[tuple[str, ...]] = ("choices",)

    def __init__(self, strict: bool = False, closed_thought: bool = False) -> None:
        self.__name__ = "choice"
        self.strict = strict
        self.closed_thought = closed_thought

    def prepare(self, row: Row) -> _Question:
        """The right label and the options' texts."""
        options = _options(row.get("choices"))
        answer = row["answer"]
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
            return _Question(list(options)[answer], options)
        if not isinstance(answer, str) or not answer.strip():
            raise RewardError(f"'answer' must be a label or an option's text, found {shorten(answer)}.")
        label = answer.strip().strip("().:")
        if label in options or label.upper() in options:
            return _Question(label if label in options else label.upper(), options)
        if not options:
            if not re.fullmatch(r"[A-Za-z]|\d{1,2}", label):
                raise RewardError(f"'answer' is {shorten(answer)}; without the column 'choices' it must be a letter.")
            return _Question(label.upper(), {})
        by_text = [key for key, text in options.items() if text.strip() == answer.strip()]
        by_text = by_text or [key for key, text in options.items() if plain(text) == plain(answer)]
        if len(by_text) != 1:
            raise RewardError(f"'answer' is {shorten(answer)}, which is none of the choices: {', '.join(options)}.")
        return _Question(by_text[0], options)

    def score(self, text: str, prepared: _Question) -> float:
        """1 for the right option and no other."""
        reply = final_answer(text, self.closed_thought)[-_MAX_REPLY:]
        chosen = _choices(tuple(prepared.options.items()), prepared.label).stated(reply, self.strict)
        # Some questions have two options with the same text; who answers with it has chosen the right one.
        texts = prepared.options
        twin = chosen in texts and texts[chosen].strip().casefold() == texts[prepared.label].strip().casefold()
        return float(chosen == prepared.label or (twin and not _is_label(reply, chosen)))


@functools.lru_cache(1024)
def _choices(options: tuple[tuple[str, str], ...], label: str) -> Choices:
    return Choices(dict(options), [name for name, _ in options] or _like(label))


def _is_label(reply: str, label: str) -> bool:
    return reply.strip().strip("().:*").upper() == label.upper()


def _like(label: str) -> list[str]:
    """Labels to look for where the row has no choices: a run of letters or of numbers."""
    if label.isdigit():
        return [str(number) for number in range(0, max(10, int(label) + 1))]
    last = max(label, "J")
    return list(string.ascii_uppercase[: string.ascii_uppercase.index(last) + 1])


def _options(choices: Any) -> dict[str, str]:
    """Label -> text, from a list of texts, a list of {label, text} or {"label": [...], "text": [...]}."""
    if choices is None:
        return {}
    if isinstance(choices, Mapping) and {"label", "text"} <= set(choices):
        pairs = list(zip(choices["label"], choices["text"], strict=False))
    elif isinstance(choices, Mapping):
        pairs = list(choices.items())
    elif isinstance(choices, list | tuple) and all(
        isinstance(item, Mapping) and {"label", "text"} <= set(item) for item in choices
    ):
        pairs = [(item["label"], item["text"]) for item in choices]
    elif isinstance(choices, list | tuple) and all(isinstance(item, str | int | float) for item in choices):
        pairs = list(zip(_letters(), choices, strict=False))
    else:
        raise RewardError(f"'choices' must be a list of texts or of {{'label', 'text'}}, found {shorten(choices)}.")
    options = {str(label).strip(): str(text) for label, text in pairs}
    if len(options) < 2 or len(options) != len(pairs):
        raise RewardError(f"'choices' must hold two or more options with different labels, found {shorten(choices)}.")
    return options


def _letters() -> Iterator[str]:
    """A to Z, then AA, AB, ... as the columns of a spreadsheet."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))
