# ruff: noqa: E501, RUF001 (patterns and tables, with the signs that people type)
"""What an algebra system is asked, and what it is not: it reads an answer into almost any text."""

import re

from counterpoint.rewards._math_text import INLINE, MAX_EXPRESSION, is_formula
from counterpoint.rewards._units import UNITS

_NEGATIONS = re.compile(r"\\(?:neg|lnot|lor|land|vee|wedge|neq?|not|forall|exists|nexists|notin)(?![A-Za-z])|≠|!=")
_DOTS = re.compile(r"\\[lcvd]?dots[cbmio]?(?![A-Za-z])|\.\.\.|…")
_SUBSCRIPTED_NUMBER = re.compile(r"\d\s*_\s*\{?\s*\\?[\da-z]")
_NAME = re.compile(
    r"\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\s*\([^()=]*\))?\s*|\s*\|[^|=]*\|\s*|\s*\([A-Za-z, ]+\)\s*|[\w{}]+(?::[\w{}]+)+\s*|.*\\(?:text|mathrm|angle|overline|measuredangle)\b.*"
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
_SIGNS = str.maketrans({
    "π": "\\pi ", "∞": "\\infty ", "∈": "\\in ", "≤": "\\le ", "≥": "\\ge ", "×": "\\times ", "÷": "\\div ", "∅": "\\emptyset ",
    "∪": "\\cup ", "∩": "\\cap ", "±": "\\pm ", "·": "\\cdot ", "⋅": "\\cdot ",
})  # fmt: skip
# What is written as in a program or by hand, in the LaTeX that the parser reads.
_SPELLED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\*\*", "^"),
        (r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot "),
        (r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi "),
        (r"(?:√|(?<![\\A-Za-z])sqrt|\\sqrt)\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\d+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"\\sqrt\s*(\[[^\[\]]*\])\s*([0-9A-Za-z])", r"\\sqrt\1{\2}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?\d{2,})", r"^{\1}"),
        (r"\\mathrm\s*\{\s*([a-zA-Z])\s*\}", r"\1"),
        (rf"(?<=\d)\s*\\(?:text|mathrm)\s*\{{[\s~]*(?:{'|'.join(map(re.escape, UNITS))})\.?\s*\}}(?!\s*\^)", " "),
        (r"\\\\\s*(?=\\end\b)", ""),
        (r"\\q?quad(?=[A-Za-z])", r"\\quad "),
    )
]
# These are no products, differences and quotients, though the algebra system takes them for such.
_WORD = re.compile(r"[A-Z]{2,}|[A-Za-z]{4,}")
_DATE = re.compile(r"\d{1,4}-\d{1,2}-\d{1,4}")
_TIME = re.compile(r"\d{1,2}:\d\d(?:[ap]m)?")
_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf)\s*\{([^{}]*)\}")
_NO_KIND = set("a an and are by cubic for if in is of on or per sq square the to unit units when where with".split())  # noqa: SIM905
_ASSIGNED = re.compile(r"\s*([A-Za-z])\s*=\s*([^=,]+)")


def normalised(text: str) -> str:
    """LaTeX that the parser would misread, in the form that it reads."""
    text = text.translate(_SIGNS)
    for pattern, replacement in _SPELLED:
        text = pattern.sub(replacement, text)
    return text


def in_one_form(reference: str, answer: str) -> tuple[str, str]:
    """Both normalised; where one is a point and the other names its coordinates, both as points."""
    pair = normalised(reference), normalised(answer)
    if not any(text.strip("$ ").startswith("(") and "=" not in text for text in pair):
        return pair
    return _point(pair[0]), _point(pair[1])


def _point(text: str) -> str:
    """``y = 4, x = 3`` as ``(3, 4)``; any other text as it is."""
    found = [_ASSIGNED.fullmatch(part) for part in text.strip("$ ").split(",")]
    values = {match[1]: match[2].strip() for match in found if match}
    return f"({', '.join(values[name] for name in sorted(values))})" if len(values) == len(found) > 1 else text


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
    kinds = _kind(answer), _kind(reference)
    if _is_text(answer, reference) or (all(kinds) and kinds[0] != kinds[1]):
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
    if "=" not in answer and is_formula(reference) and _is_of_another_question(reference):
        return False
    if numeric and (re.fullmatch(r"[\d\s.,$%-]*", answer) or _is_of_another_question(answer)):
        return False
    if numeric and (_NO_SIGN.search(answer) or _is_false(answer)):
        return False
    return not ((plain or numeric) and is_unfinished(answer))


def _is_text(answer: str, reference: str) -> bool:
    """Whether the two only agree letter by letter: words, dates and times."""
    pair = _unspaced(answer), _unspaced(reference)
    times = [_TIME.fullmatch(text) for text in pair]
    return (
        all(map(_WORD.fullmatch, pair))
        or any(map(_DATE.fullmatch, pair))
        or all(times)
        or (any(times) and not all(":" in text for text in pair))
    )


def _kind(text: str) -> set[str]:
    """The words inside a formula that say what it is of, units by their names."""
    words = re.findall(r"[^\W\d_]+|[°%]", " ".join(_IN_TEXT.findall(text)))
    return {UNITS.get(word, word.casefold()) for word in words} - _NO_KIND


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
    left, *right = re.split(r"(?<![<>!])=", answer, maxsplit=1)
    left = left.strip().strip("$")
    return bool(right) and not (_NAME.fullmatch(left) or _NO_LETTERS.fullmatch(left))


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
    text = _unspaced(text)
    return text.casefold() if re.fullmatch(r"[^\W\d_]{2,}", text) else text


def _unspaced(text: str) -> str:
    text = _IN_TEXT.sub(r"\1", text)
    text = re.sub(r"\s(?!\d)|(?<!\d)\s|\\[,!;]|\\left|\\right|[$.*]+$|^[$*]+", "", text)
    # Of times, ``03:30 P.M.`` is ``3:30pm``.
    return re.sub(r"^0(?=\d:)|(?<=[ap])\.(?=m$)", "", text.lower()) if ":" in text else text
