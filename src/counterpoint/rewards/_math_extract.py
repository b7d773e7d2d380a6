"""The final answer of a reply to a mathematical question: a number, an expression, or none."""

import re
from dataclasses import dataclass

from counterpoint.rewards._cues import announced, is_announced
from counterpoint.rewards._math_text import (
    INLINE,
    after_hashes,
    bare_formula,
    boxed,
    is_formula,
    is_numbered,
    labelled,
    last_bold,
    last_formula,
    last_tuple,
    leading_formula,
    unwrapped,
)
from counterpoint.rewards._numbers import (
    Number,
    decimal_points,
    first_number,
    is_factor,
    last_number,
    parse_number,
)
from counterpoint.rewards._numerals import ascii_numerals

_FINAL = re.compile(r"final\s+answer\s+is\b[:\s]*([^\n]+)", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\s*(?:or|oder|ou|o)\s+[-$]?\s?\d")
_LIST = re.compile(r"(?:\s*(?:,|;|,?\s*(?:and|or|&))\s*[-$]{0,2}[\d.]+)+\s*[.!]*\s*")
_IN_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


@dataclass(frozen=True)
class Expression:
    """An answer that is no number.

    Attributes:
        text: As it stands in the reply.
        prose: Whether it may hold words among which formulas are looked for.
    """

    text: str
    prose: bool = False


Answer = Number | Expression | None


def extract(text: str, numeric: bool, extraction: str) -> Answer:
    """The final answer of a reply.

    Arguments:
        text: The reply, without its thought.
        numeric: Whether the reference is a number, so that numbers are looked for.
        extraction: One of ``math.EXTRACTIONS``.
    """
    answer = _extract(text, numeric, extraction)
    return None if isinstance(answer, Expression) and not answer.text.strip() else answer


def _extract(text: str, numeric: bool, extraction: str) -> Answer:
    if extraction == "last_number":
        return last_number(text)
    if extraction == "gsm8k":
        return read(after_hashes(text)[0], numeric)
    if extraction == "boxed":
        return read(boxed(text), numeric)
    text = ascii_numerals(text)
    if extraction == "plain":
        return read(text, numeric)
    return _marked(text, numeric) or (_number(text) if numeric else _expression(text))


def read(text: str, numeric: bool) -> Answer:
    """A text that is an answer and nothing else."""
    text = unwrapped(text.strip())
    label = labelled(text) if numeric else None
    text = label[1] if label else text
    number = parse_number(text, comma=True) if numeric else None
    if number is not None or not text:
        return number
    words = _IN_TEXT.sub(r"\1", text) if "nswer" in text else ""
    return read(announced(words)[0], numeric) if is_announced(words) and announced(words) else Expression(text)


def _marked(text: str, numeric: bool) -> Answer:
    """What stands in a box, or after ``####`` where that is no heading."""
    box = boxed(text)
    if box:
        final = _FINAL.search(text.rpartition("boxed")[2])
        return _after_cue(final[1], numeric) if final else read(box, numeric)
    line, rest = after_hashes(text)
    if not line or is_numbered(line) or announced(rest):
        return None
    answer = read(line, numeric)
    if numeric:
        return answer if isinstance(answer, Number) or is_formula(line) else None
    return answer if is_formula(line) or not rest.strip() else None


def _expression(text: str) -> Answer:
    cues = announced(text)
    if cues:
        line = cues[-1].strip().rstrip(".").strip("*_ ")
        formula = leading_formula(line)
        return Expression(formula or line, prose=not formula)
    found = last_formula(text)
    if found:
        return Expression(found)
    if is_formula(text):
        return Expression(text, prose=True)
    formula = "" if "\\begin" in text else bare_formula(text) or last_tuple(text)  # a matrix has words in its middle
    return Expression(formula) if formula else Expression(last_bold(text) or text, prose=True)


def _number(text: str) -> Answer:
    cues = announced(text)
    answer = _after_cue(cues[-1], numeric=True) if cues else parse_number(text, comma=True)
    if answer is not None:
        return answer
    # A bare calculation, ``17 + 25 = 42`` or ``2\\sqrt{4}``, is read as a whole: its last number is not its value.
    if not cues and is_formula(whole := unwrapped(text)):
        return _result(whole)
    formula = ("" if cues else _closing_formula(text)) or bare_formula(text)
    return _result(formula) if formula else last_number(text)


def _after_cue(line: str, numeric: bool) -> Answer:
    """The answer that a line begins with; None where it begins with a word."""
    line = line.strip().strip("*_").strip()
    formula = leading_formula(line)
    if formula and is_formula(formula):
        return _result(formula) if numeric else Expression(formula)
    if not numeric:
        return Expression(line.rstrip("."), prose=True)
    line = decimal_points(line.rstrip("!"))  # after words it is no factorial
    number = parse_number(line, comma=True)
    if number is not None:
        return number
    match = first_number(line)
    if match is None:
        box = boxed(line)
        return read(box, numeric) if box else None
    rest = line[match.end() :]
    if _ALTERNATIVE.match(rest) or _LIST.fullmatch(rest):
        return Expression(line)  # several numbers are none
    whole = line.rstrip(" .")
    if is_formula(whole):
        return _result(whole)
    return Expression(whole) if is_factor(rest) else parse_number(match[0].replace("$", ""))


def _result(formula: str) -> Answer:
    """What a calculation comes to: what follows its last equals sign."""
    left, sign, right = formula.rpartition("=")
    return read(right if sign and not re.search("[a-zA-Z]", left) else formula, numeric=True)


def _closing_formula(text: str) -> str:
    """The formula that holds the last number of a text and is more than that number, or nothing."""
    if not any(sign in text for sign in ("$", "\\(", "\\[")):
        return ""
    paragraph = text.rstrip().rpartition("\n\n")[2][-2000:]
    found = list(INLINE.finditer(paragraph))
    if not found or any(sign.isdecimal() for sign in paragraph[found[-1].end() :]):
        return ""
    formula = next(filter(None, found[-1].groups())).strip()
    return formula if is_formula(formula) and any(sign.isdecimal() for sign in formula) else ""
