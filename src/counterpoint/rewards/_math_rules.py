"""What an algebra system is asked, and what it is not: it reads an answer into almost any text."""

import re

from counterpoint.rewards._math_text import INLINE, MAX_EXPRESSION, is_formula

_NEGATIONS = re.compile(r"\\(?:neg|lnot|lor|land|vee|wedge|neq?|not|forall|exists|nexists|notin)(?![A-Za-z])|≠|!=")
_DOTS = re.compile(r"\\[lcvd]?dots[cbmio]?(?![A-Za-z])|\.\.\.|…")
_SUBSCRIPTED_NUMBER = re.compile(r"\d\s*_\s*\{?\s*\\?[\da-z]")
_NAME = re.compile(
    r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()=]*\))?\s*|\s*\|[^|=]*\|\s*|.*\\(?:text|mathrm|angle|overline|measuredangle)\b.*"
)
_QUANTITY = re.compile(
    r"\s*(?:[A-Za-z]\s*=\s*)?[-+]?(?:[\d.,/]+|\\d?frac\s*\{\d+\}\s*\{\d+\})([A-Za-z])(?:\^\{?\d\}?)?\s*"
)
_UNKNOWN_UNIT = re.compile(r"\d\s*\\(?:text|mathrm|mbox)\s*\{[^{}]*[A-Za-z]")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_NUMERIC_COMMANDS = frozenset(
    """
frac dfrac tfrac cfrac sqrt pi cdot times div pm mp text textbf textnormal mathrm mathbf mbox left right big Big sin cos
tan sec csc cot arcsin arccos arctan sinh cosh tanh log ln lg exp circ degree quad qquad sum prod int lim to binom
dbinom tbinom choose infty approx approxeq displaystyle lfloor rfloor lceil rceil overline angle in le leq ge geq lt gt
theta alpha beta gamma delta lambda mu phi varphi omega max min gcd lcm begin end det bmod pmod mod equiv percent dollar
euro pounds boxed fbox therefore implies Rightarrow rightarrow vert lvert rvert limits over
""".split()  # noqa: SIM905
)
# Between two other signs these belong to no formula.
_NO_SIGN = re.compile(r"\S\s*[?@#]\s*\w")
_TWO_NUMBERS = re.compile(r"[\s$]*(-?\d{1,30})\s*=\s*(-?\d{1,30})[\s$.]*")
_NO_LETTERS = re.compile(r"(?:\\[A-Za-z]+|[^A-Za-z])*")
_PROSE_WORDS = 4


def normalised(text: str) -> str:
    """LaTeX that the parser would misread, in the form that it reads."""
    text = re.sub(r"\\mathrm\s*\{\s*([a-zA-Z])\s*\}", r"\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"\\q?quad(?=[A-Za-z])", r"\\quad ", text)


def is_comparable(answer: str, reference: str, numeric: bool, plain: bool) -> bool:
    """Whether an algebra system may compare the two.

    Arguments:
        answer: What stands where the answer is looked for.
        reference: The right answer.
        numeric: Whether the reference is a number.
        plain: Whether the whole reply must be the answer.
    """
    if len(answer) > MAX_EXPRESSION or (plain and not is_formula(answer)) or _is_prose(reference):
        return False
    if bool(_NEGATIONS.search(answer)) != bool(_NEGATIONS.search(reference)):
        return False
    if _DOTS.search(answer) or _SUBSCRIPTED_NUMBER.search(answer) or (_has_base_or_dots(reference)):
        return False
    if not (_has_letter_of(answer, reference) and _has_letter_of(reference, answer)):
        return False
    if numeric and _UNKNOWN_UNIT.search(answer):
        return False
    if numeric and not _NUMERIC_COMMANDS.issuperset(_COMMAND.findall(answer)):
        return False
    if numeric and (re.fullmatch(r"[\d\s.,$%-]*", answer) or _is_of_another_question(answer)):
        return False
    if numeric and (_NO_SIGN.search(answer) or _is_false(answer)):
        return False
    return not ((plain or numeric) and is_unfinished(answer))


def _has_letter_of(text: str, quantity: str) -> bool:
    """Whether the letter of a quantity like ``3m`` stands in the text; the algebra system may take it for a unit."""
    match = _QUANTITY.fullmatch(quantity.strip("$"))
    return match is None or match[1] in text


def _has_base_or_dots(reference: str) -> bool:
    return len(reference) <= MAX_EXPRESSION and bool(_DOTS.search(reference) or _SUBSCRIPTED_NUMBER.search(reference))


def _is_prose(text: str) -> bool:
    """Sentences without a formula: a number in them is not the answer."""
    return (
        len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)) >= _PROSE_WORDS
        and "\\" not in text
        and not INLINE.search(text)
    )


def _is_of_another_question(answer: str) -> bool:
    """An equation whose left side is more than a name: ``x^2 - 5x + 6 = 0`` says nothing about 0."""
    left, sign, _ = answer.partition("=")
    left = left.strip().strip("$")
    return bool(sign) and not (_NAME.fullmatch(left) or _NO_LETTERS.fullmatch(left))


def _is_false(answer: str) -> bool:
    """An equation of two different whole numbers, ``7 = 8``, in which either could be meant."""
    match = _TWO_NUMBERS.fullmatch(answer)
    return match is not None and int(match[1]) != int(match[2])


def is_unfinished(answer: str) -> bool:
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


def same_text(answer: str, reference: str) -> bool:
    """Whether two texts differ in nothing but spaces, LaTeX's spacing and the signs around formulas."""
    return _bare(answer) == _bare(reference)


def _bare(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\s|\\[,!;]|\\left|\\right|[$.*]+$|^[$*]+", "", text)
    return text.casefold() if re.fullmatch(r"[^\W\d_]{2,}", text) else text
