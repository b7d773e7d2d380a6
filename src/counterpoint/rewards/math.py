"""Reward ``math``: whether the final answer equals the reference.

    {"question": "Natalia sold clips to 48 of her friends ...", "answer": "Natalia sold 48/2 = 24 clips ...\\n#### 72"}
    completion "48 + 24 = 72, so the answer is 72."    1.0

Numbers are compared exactly. Anything else goes to math-verify, in worker processes that can be killed: a computer
algebra system may take for ever on ``9**9**9**9``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, one_of, text_list
from counterpoint.rewards._numbers import last_number, parse_number
from counterpoint.rewards._regions import final_answer
from counterpoint.rewards.sandbox._scorers import scorers

EXTRACTIONS = ("auto", "gsm8k", "boxed", "plain", "last_number")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_CUE = re.compile(r"(?:final\s+)?answer\s*(?:is|:|=)+\s*:?\s*(?:\*\*)?\s*([^\n]+)", re.IGNORECASE)
_INLINE_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_MAX_EXPRESSION, _MAX_BOXES = 300, 50
# An answer stands at the end; searching more of an endless reply would only take time.
_MAX_REPLY = 10_000
_MAX_TIMEOUT = 600
_FUNCTIONS = {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "frac", "cdot", "times", "inf"}


@dataclass(frozen=True)
class _Reference:
    text: str
    number: Fraction | None


class MathReward(Reward):
    """1 when the completion's final answer equals one of the row's references, else 0.

    Arguments:
        extraction: Where the answer is looked for: ``gsm8k`` (after ``####``), ``boxed`` (the last ``\\boxed{}``),
            ``plain`` (the whole reply is the answer), ``last_number``, or ``auto``: the first of ``####``,
            ``\\boxed{}``, ``answer is ...``, the whole reply, the last formula or number.
        strict: With ``auto``: the whole reply must be the answer (the same as ``plain``).
        timeout: Seconds that math-verify may take for one pair.
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def __init__(self, extraction: str = "auto", strict: bool = False, timeout: float = 3.0) -> None:
        self.__name__ = "math"
        self.extraction = one_of("extraction", extraction, EXTRACTIONS)
        if strict and extraction not in ("auto", "plain"):
            raise RewardError(
                f"strict means that the whole reply is the answer; it contradicts extraction={extraction!r}."
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout <= _MAX_TIMEOUT:
            raise RewardError(
                f"timeout must be a number of seconds above 0 and up to {_MAX_TIMEOUT}, found {timeout!r}."
            )
        if strict:
            self.extraction = "plain"
        self.timeout = timeout

    def prepare(self, row: Row) -> list[_Reference]:
        """The references' texts and, where they are numbers, values."""
        answers = text_list(row["answer"], "answer", "a number, a text or a list of them")
        return [self._reference(answer) for answer in answers]

    def _reference(self, answer: str) -> _Reference:
        text = _after_hashes(answer) or _boxed(answer) or answer.strip()
        if not text:
            raise RewardError("'answer' is empty.")
        return _Reference(text, parse_number(text))

    def score_all(self, texts: Sequence[str], prepared: Sequence[list[_Reference]]) -> list[float | None]:
        """Numbers at once; what is left goes to the workers together."""
        rewards: list[float | None] = [0.0] * len(texts)
        open_pairs: list[tuple[int, str, str]] = []
        for index, (text, references) in enumerate(zip(texts, prepared, strict=True)):
            for reference in references:
                answer = self.extract(text, reference.number is not None)
                if isinstance(answer, Fraction):
                    rewards[index] = float(rewards[index] == 1.0 or answer == reference.number)
                elif answer:
                    if _same_text(answer, reference.text):
                        rewards[index] = 1.0
                    elif self._is_comparable(answer, reference):
                        open_pairs.append((index, reference.text, answer))
        open_pairs = [pair for pair in open_pairs if rewards[pair[0]] == 0.0]
        distinct = list(dict.fromkeys((gold, answer) for _, gold, answer in open_pairs))
        verdicts = dict(zip(distinct, scorers("math").run(distinct, self.timeout), strict=True))
        for index, gold, answer in open_pairs:
            same = verdicts[gold, answer]
            if same or (same is None and rewards[index] == 0.0):
                rewards[index] = None if same is None else 1.0
        return rewards

    def _is_comparable(self, answer: str, reference: _Reference) -> bool:
        """Whether math-verify is asked at all. It finds formulas in prose, which a whole reply must not be."""
        if len(answer) > _MAX_EXPRESSION or (self.extraction == "plain" and not _is_formula(answer)):
            return False
        strict = self.extraction == "plain" or reference.number is not None
        return not (_is_malformed_number(answer, reference) or (strict and _is_unfinished(answer)))

    def extract(self, text: str, numeric: bool) -> Fraction | str:
        """The final answer of a completion: a number, an expression's text, or ``""``.

        Arguments:
            text: The completion.
            numeric: Whether the reference is a number, so that numbers are looked for.
        """
        text = final_answer(text)[-_MAX_REPLY:]
        if self.extraction == "gsm8k":
            return _read(_after_hashes(text), numeric)
        if self.extraction == "boxed":
            return _read(_boxed(text), numeric)
        if self.extraction == "plain":
            return _read(text, numeric)
        if self.extraction == "last_number":
            return _or_nothing(last_number(text))
        return self._extract_auto(text, numeric)

    def _extract_auto(self, text: str, numeric: bool) -> Fraction | str:
        marked = _after_hashes(text) or _boxed(text)
        if marked:
            return _read(marked, numeric)
        cues = _CUE.findall(text)
        if not numeric:
            formulas = [next(filter(None, groups)) for groups in _INLINE_MATH.findall(text)]
            return cues[-1].strip().rstrip(".") if cues else formulas[-1].strip() if formulas else text
        for candidate in (cues[-1] if cues else "", text):
            number = parse_number(candidate)
            if number is not None:
                return number
        if cues:
            number = _first_number(cues[-1])
            return _or_nothing(last_number(text) if number is None else number)
        # A bare calculation, ``17 + 25 = 42`` or ``2\\sqrt{4}``, is read as a whole: its last number is not its value.
        result = text.rpartition("=")[2]
        return _read(result, numeric) if _is_formula(text) else _or_nothing(last_number(text))


def _read(text: str, numeric: bool) -> Fraction | str:
    number = parse_number(text) if numeric else None
    return text.strip() if number is None else number


def _or_nothing(number: Fraction | None) -> Fraction | str:
    return "" if number is None else number


def _first_number(text: str) -> Fraction | None:
    """The number that a cue's line begins with, as in ``answer is 5 because 2 + 3 ...``."""
    match = re.match(r"\W*?(-?\s?[$£€]?\s?-?[\d,]*\.?\d+(?:/\d+)?)(?![\w]*[*^])", text)
    return parse_number(match[1]) if match else None


def _after_hashes(text: str) -> str:
    """The line after the last ``####``."""
    _, marker, tail = text.rpartition("####")
    return tail.strip().partition("\n")[0].strip() if marker else ""


def _boxed(text: str) -> str:
    """The content of the last ``\\boxed{}`` whose braces are balanced."""
    for start in reversed([match.end() for match in _BOXED.finditer(text)][-_MAX_BOXES:]):
        depth = 1
        for position in range(start, min(len(text), start + 2000)):
            depth += {"{": 1, "}": -1}.get(text[position], 0)
            if depth == 0:
                return text[start:position].strip()
    return ""


def _is_formula(text: str) -> bool:
    """Whether a text is one line of mathematics: no words but functions' names."""
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", re.sub(r"\\(?:text|mathrm)\s*\{[^{}]*\}", "", text))
    return "\n" not in text and len(text) <= _MAX_EXPRESSION and all(word in _FUNCTIONS for word in words)


def _is_malformed_number(answer: str, reference: _Reference) -> bool:
    """Digits and separators that are no number, like ``1,0007``: algebra systems may read a number into them."""
    return reference.number is not None and re.fullmatch(r"[\d\s.,$%-]*", answer) is not None


def _is_unfinished(answer: str) -> bool:
    """A calculation that breaks off, like ``3 + (``: algebra systems read what stands before the break.

    Round and square brackets may close each other, as those of half-open intervals do.
    """
    text = answer.strip().strip("$").rstrip(" .")
    depths = {"(": 0, "{": 0}
    for sign in text:
        kind = "(" if sign in "([)]" else "{" if sign in "{}" else ""
        if kind:
            depths[kind] += 1 if sign in "([{" else -1
            if depths[kind] < 0:
                return True
    return any(depths.values()) or text.endswith(("+", "-", "*", "/", "^", "=", "\\times", "\\cdot", "\\div"))


def _same_text(answer: str, reference: str) -> bool:
    return re.sub(r"\s|\\[,!;]|\\left|\\right|[$.]$|^\$", "", answer) == re.sub(
        r"\s|\\[,!;]|\\left|\\right|[$.]$|^\$", "", reference
    )
