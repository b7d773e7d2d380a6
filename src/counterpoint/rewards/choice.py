"""Reward ``choice``: multiple choice, answered by letter or by the option's text.

    {"prompt": "... (A) bank (B) library ...", "answer": "A", "choices": ["bank", "library", "department store"]}
    completion "The answer is (A)."    1.0        completion "A bank, of course."    1.0

A completion that names two options equally well answers neither: 0.
"""

import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, shorten
from counterpoint.rewards._regions import final_answer
from counterpoint.rewards.text import normalise

# A choice stands at the end; searching more of an endless reply would only take time.
_MAX_REPLY = 10_000


@dataclass(frozen=True)
class _Question:
    label: str
    options: dict[str, str]
    """Label -> normalised text; empty where the row has no choices."""


class ChoiceReward(Reward):
    """1 when the completion chooses the right option, else 0.

    Arguments:
        strict: Only a reply that is nothing but the label counts (``B``, ``(B)``, ``B.``).
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)
    optional_columns: ClassVar[tuple[str, ...]] = ("choices",)

    def __init__(self, strict: bool = False) -> None:
        self.__name__ = "choice"
        self.strict = strict

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
        by_text = [key for key, text in options.items() if text == normalise(answer)]
        if len(by_text) != 1:
            raise RewardError(f"'answer' is {shorten(answer)}, which is none of the choices: {', '.join(options)}.")
        return _Question(by_text[0], options)

    def score(self, text: str, prepared: _Question) -> float:
        """1 for the right option and no other."""
        return float(self.choose(final_answer(text)[-_MAX_REPLY:], prepared.options, prepared.label) == prepared.label)

    def choose(self, text: str, options: Mapping[str, str], label: str) -> str | None:
        """The label that ``text`` chooses, or None when it chooses none or several.

        Some questions have two options with the same text; who answers with it has chosen ``label`` if that is one of
        them.
        """
        labels = list(options) or _like(label)
        spelled = _spellings(labels)
        whole = re.fullmatch(rf"\W*({_any_of(spelled)})\W*", text.strip())
        if whole:
            return spelled[whole[1]]
        if self.strict:
            return None
        for pattern in _patterns(_any_of(labels), _any_of(spelled)):
            found = pattern.findall(text)
            if found:
                return spelled[found[-1]]
        return _by_text(text, options, label) or _lone_label(text, _any_of(labels), spelled)


def _spellings(labels: Sequence[str]) -> dict[str, str]:
    """Every way to write a label -> the label. Not `re.IGNORECASE`, which takes a dotless i for an I."""
    spelled = {label: label for label in labels}
    for label in labels:
        spelled.setdefault(label.lower(), label)
        spelled.setdefault(label.upper(), label)
    return spelled


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _patterns(names: str, in_any_case: str) -> list[re.Pattern[str]]:
    """Ways to state a label, the clearest first; the last statement of a kind counts."""
    end = r"(?![\w'’])"  # noqa: RUF001
    return [
        re.compile(rf"\\boxed\s*\{{\s*(?:\\text\s*\{{)?\s*\(?({names})\)?\s*\}}"),
        re.compile(
            rf"(?i:answer|choice|option)(?i:\s+is|\s*:|\s+would\s+be)*\s*:?\s*\**\s*(?i:option\s+)?[(\[]?({names}){end}[)\]]?"
        ),
        re.compile(rf"^\W*({in_any_case})[).:](?:\s|$)"),
        re.compile(rf"^\s*\**\(?({names})\)?\**\s*(?:[-–—]|\n|$)"),  # noqa: RUF001
    ]


def _by_text(text: str, options: Mapping[str, str], label: str) -> str | None:
    """The one option whose text stands in ``text``; one inside a longer one that stands there too does not count."""
    cues = re.findall(r"(?i:answer\s+(?:is|would be)|answer\s*:)\s*([^\n]+)", text)
    for part in (*reversed(cues), text):
        plain = f" {normalise(part)} "
        present = [name for name, option in options.items() if option and f" {option} " in plain]
        longest = [
            name
            for name in present
            if not any(
                options[name] != options[other] and f" {options[name]} " in f" {options[other]} " for other in present
            )
        ]
        if len({options[name] for name in longest}) == 1:
            return label if label in longest else longest[0]
    return None


def _lone_label(text: str, names: str, spelled: Mapping[str, str]) -> str | None:
    """The one label that stands alone in ``text``, in brackets or as a capital; ``A`` and ``I`` may be words."""
    bracketed = {spelled[name] for name in re.findall(rf"[(\[]\s*({_any_of(spelled)})\s*[)\]]", text)}
    if len(bracketed) == 1:
        return bracketed.pop()
    bare = set()
    for match in re.finditer(rf"(?<![\w'’])({names})(?![\w'’])", text):  # noqa: RUF001
        is_word = match[1] in ("A", "I") and re.match(r"\s+(?!or\b|and\b)[a-z]", text[match.end() :])
        if not is_word:
            bare.add(match[1])
    return bare.pop() if len(bare) == 1 and not bracketed else None


def _like(label: str) -> list[str]:
    """Labels to look for where the row has no choices: a run of letters or of numbers."""
    if label.isdigit():
        return [str(number) for number in range(0, max(10, int(label) + 1))]
    last = max(label, "J")
    return list(string.ascii_uppercase[: string.ascii_uppercase.index(last) + 1])


def _options(choices: Any) -> dict[str, str]:
    """Label -> normalised text, from a list of texts, a list of {label, text} or {"label": [...], "text": [...]}."""
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
        pairs = list(zip(string.ascii_uppercase, choices, strict=False))
    else:
        raise RewardError(f"'choices' must be a list of texts or of {{'label', 'text'}}, found {shorten(choices)}.")
    options = {str(label).strip(): normalise(str(text)) for label, text in pairs}
    if len(options) < 2 or len(options) != len(pairs):
        raise RewardError(f"'choices' must hold two or more options with different labels, found {shorten(choices)}.")
    return options
