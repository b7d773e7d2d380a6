"""Reward ``math``: whether the final answer equals the reference.

    {"question": "Natalia sold clips to 48 of her friends ...", "answer": "Natalia sold 48/2 = 24 clips ...\\n#### 72"}
    completion "48 + 24 = 72, so the answer is 72."    1.0

Numbers are compared exactly. Anything else goes to math-verify, in worker processes that can be killed: a computer
algebra system may take for ever on ``9**9**9**9``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, one_of, text_list
from counterpoint.rewards._cues import announced, is_announced
from counterpoint.rewards._math_extract import Answer, extract
from counterpoint.rewards._math_rules import in_one_form, is_comparable, same_text
from counterpoint.rewards._math_text import after_hashes, boxed, is_numbered, labelled, unwrapped
from counterpoint.rewards._numbers import Number, parse_number
from counterpoint.rewards._numerals import ascii_numerals
from counterpoint.rewards._regions import final_answer
from counterpoint.rewards.sandbox._scorers import scorers

EXTRACTIONS = ("auto", "gsm8k", "boxed", "plain", "last_number")
# An answer stands at the end; searching more of an endless reply would only take time.
_MAX_REPLY = 10_000
_MAX_SECONDS = 600
_END_OF_TEXT = re.compile(r"\s*(?:</s>|<\|[^|<>\s]{1,30}\|>)+\Z")


@dataclass(frozen=True)
class _Reference:
    text: str
    number: Number | None
    is_label: bool = False


class MathReward(Reward):
    """1 when the completion's final answer equals one of the row's references, else 0.

    Arguments:
        extraction: Where the answer is looked for: ``gsm8k`` (after ``####``), ``boxed`` (the last ``\\boxed{}``),
            ``plain`` (the whole reply is the answer), ``last_number``, or ``auto``: the first of ``\\boxed{}``,
            ``####``, ``answer is ...``, the whole reply, the last formula or number.
        strict: With ``auto``: the whole reply must be the answer (the same as ``plain``).
        timeout: Seconds that math-verify may take for one pair.
        batch_timeout: Seconds that math-verify may take for all pairs of a batch; what is left has no reward.
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def __init__(
        self,
        extraction: str = "auto",
        strict: bool = False,
        timeout: float = 3.0,
        batch_timeout: float = 60.0,
        closed_thought: bool = False,
    ) -> None:
        self.__name__ = "math"
        self.extraction = one_of("extraction", extraction, EXTRACTIONS)
        if strict and extraction not in ("auto", "plain"):
            raise RewardError(
                f"strict means that the whole reply is the answer; it contradicts extraction={extraction!r}."
            )
        if strict:
            self.extraction = "plain"
        self.timeout = _seconds("timeout", timeout)
        self.batch_timeout = _seconds("batch_timeout", batch_timeout)
        self.closed_thought = closed_thought

    def prepare(self, row: Row) -> list[_Reference]:
        """The references' texts and, where they are numbers, values."""
        answers = text_list(row["answer"], "answer", "a number, a text or a list of them")
        return [reference for answer in answers for reference in _references(answer)]

    def score_all(self, texts: Sequence[str], prepared: Sequence[list[_Reference]]) -> list[float | None]:
        """Numbers at once; what is left goes to the workers together."""
        rewards: list[float | None] = [0.0] * len(texts)
        open_pairs: list[tuple[int, tuple[str, str, bool]]] = []
        for index, (text, references) in enumerate(zip(texts, prepared, strict=True)):
            same, pairs = self._compare(text, references)
            rewards[index] = float(same)
            open_pairs += [(index, pair) for pair in pairs if not same]
        distinct = list(dict.fromkeys(pair for _, pair in open_pairs))
        found = scorers("math").run(distinct, self.timeout, self.batch_timeout)
        verdicts = dict(zip(distinct, found, strict=True))
        for index, pair in open_pairs:
            verdict = verdicts[pair]
            if verdict or (verdict is None and rewards[index] == 0.0):
                rewards[index] = None if verdict is None else 1.0
        return rewards

    def _compare(self, text: str, references: list[_Reference]) -> tuple[bool, list[tuple[str, str, bool]]]:
        """Whether a reply is right for what we see ourselves, and the pairs that math-verify is asked about."""
        in_whole = self.extraction in ("auto", "plain")
        region = self._region(text)
        pairs: list[tuple[str, str, bool]] = []
        for reference in references:
            if reference.number is None and in_whole and same_text(region, reference.text):
                return True, []
            answer = self._answer(region, reference.number is not None)
            if isinstance(answer, Number):
                if reference.number is not None and answer.agrees(reference.number):
                    return True, []
                continue
            label = labelled(answer.text) if answer else None
            if answer is None or (label and reference.is_label and len(references) > 1):
                continue  # where both have a label and a value, the value counts
            for reading in label or (answer.text,):
                if same_text(reading, reference.text):
                    return True, []
                if self._is_comparable(reading, reference):
                    pairs.append((*in_one_form(reference.text, reading), answer.prose))
        return False, pairs

    def _is_comparable(self, answer: str, reference: _Reference) -> bool:
        """Whether math-verify is asked at all."""
        return is_comparable(answer, reference.text, reference.number is not None, self.extraction == "plain")

    def _region(self, text: str) -> str:
        return final_answer(text, self.closed_thought)[-_MAX_REPLY:]

    def extract(self, text: str, numeric: bool) -> Answer:
        """The final answer of a completion: a number, an expression, or None.

        Arguments:
            text: The completion.
            numeric: Whether the reference is a number, so that numbers are looked for.
        """
        return self._answer(self._region(text), numeric)

    def _answer(self, region: str, numeric: bool) -> Answer:
        return extract(_END_OF_TEXT.sub("", region) if region.endswith(">") else region, numeric, self.extraction)


def _references(answer: str) -> list[_Reference]:
    answer = final_answer(answer) if "</" in answer else answer
    line = after_hashes(answer)[0] if "####" in answer else ""
    text = boxed(answer) if "box" in answer else ""
    text = unwrapped(ascii_numerals(text or ("" if is_numbered(line) else line) or answer).strip())
    if not text:
        raise RewardError("'answer' is empty.")
    if text[0].isalpha() and is_announced(text) and announced(text):
        text = unwrapped(announced(text)[0].strip()) or text
    label = labelled(text) if text[0] == "\\" else None
    return [_Reference(label[0], None, is_label=True), *_readings(label[1])] if label else _readings(text)


def _readings(text: str) -> list[_Reference]:
    number = parse_number(text)
    references = [_Reference(text, number)]
    # ``2,74`` may be a list or a number with a decimal comma: either is right.
    decimal = parse_number(text, comma=True) if number is None and "," in text else None
    return references if decimal is None else [*references, _Reference(text, decimal)]


def _seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MAX_SECONDS:
        raise RewardError(f"{name} must be a number of seconds above 0 and up to {_MAX_SECONDS}, found {value!r}.")
    return value
