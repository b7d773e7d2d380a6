"""Reading numbers as people write them, exactly."""

import re
from fractions import Fraction

_MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_SHORT_UNITS = "m g s h l L km cm mm kg mg ml mL ft in mi lb oz hr hrs min mins sec am pm mph"
_NOT_UNITS = {
    "pi",
    "or",
    "and",
    "to",
    "plus",
    "minus",
    "times",
    "over",
    "sqrt",
    "sin",
    "cos",
    "tan",
    "log",
    "ln",
    "exp",
    "mod",
}
_NOT_UNITS |= {"half", "halves", "third", "thirds", "quarter", "quarters"}
_MAX_DIGITS = 400

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_TIMES_TEN_TO = r"(?:[eE]|\s*(?:\\times|\\cdot|[x×*])\s*10\s*\^\s*\{?\s*)"  # noqa: RUF001
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?:[$£€¥]\s*)?(?P<inner>[-+]?)\s*
    (?: \\[dt]?frac\s*\{{\s*(?P<over>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>{_DECIMAL})\s*\}}
      | (?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})(?!\s*/)
      | (?P<whole>{_DIGITS})\s+(?P<part>\d+)\s*/\s*(?P<parts>\d+)
      | (?P<decimal>{_DECIMAL})(?:{_TIMES_TEN_TO}(?P<exponent>[-+]?\d{{1,3}})\s*\}}?)?
    )""",
    re.VERBOSE,
)
_LAST_NUMBER = re.compile(rf"(?<![\w.])[-−]?\s?[$£€]?\s?[-−]?{_DECIMAL}(?:\s*/\s*{_DIGITS}(?![\w.]*/))?")  # noqa: RUF001
_LATEX_NOISE = re.compile(r"\\(?:left|right|displaystyle|,|!|;|:|quad|ldots)")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")


def parse_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number, or None.

    Thousands' commas, ``$`` and other currency, ``%`` (dropped: 50% is 50), a trailing full stop, ``\\frac`` and plain
    fractions, mixed numbers, scientific notation, ``x = 5``, ``5 million`` and words of units after the number are
    understood.
    """
    text = _clean(text[: 2 * _MAX_DIGITS + 1])
    if not text or len(text) > _MAX_DIGITS:
        return None
    match = _NUMBER.match(text)
    if match is None:
        return None
    factor = _trailing_factor(text[match.end() :])
    value = _value(match)
    if factor is None or value is None:
        return None
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return -value * factor if negative else value * factor


def last_number(text: str) -> Fraction | None:
    """The value of the last number in a text, or None."""
    matches = list(_LAST_NUMBER.finditer(text[-20_000:].replace("\\$", "$").replace("{,}", ",")))
    return parse_number(matches[-1].group()) if matches else None


def _clean(text: str) -> str:
    text = text.strip().strip("*_`").replace("−", "-").replace("–", "-").replace("\u00a0", " ")  # noqa: RUF001
    text = text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\ ", " ")
    text = _LATEX_TEXT.sub(r" \1 ", _LATEX_NOISE.sub(" ", text)).strip()
    if text.startswith("$") and text.endswith("$") and len(text) > 1:
        text = text.strip("$").strip()
    text = re.sub(r"^\(?\s*[a-zA-Z]\s*=\s*", "", text)
    text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", " degrees", text)
    return text.rstrip(".,;:! \n").strip()


def _trailing_factor(rest: str) -> int | None:
    """What the words after a number multiply it by: 1 for units, more for ``million``; None when they are no units."""
    rest = rest.strip().lstrip("%").strip()
    if not rest:
        return 1
    words = re.sub(r"[{}()$€£]", " ", rest).replace("/", " ").replace("-", " ").split()
    if not words or len(words) > 6:
        return None
    factor = _MULTIPLES.get(words[0].lower())
    for word in words[1:] if factor else words:
        plain = re.sub(r"(?:\^?[23]|[²³])$", "", word).rstrip(".,")
        if plain.lower() in _NOT_UNITS or not (
            plain in _SHORT_UNITS.split() or re.fullmatch(r"[A-Za-zÀ-ÿ']{3,}|of|an?|in|at|by", plain)
        ):
            return None
    return factor or 1


def _value(match: re.Match[str]) -> Fraction | None:
    def fraction(top: str, bottom: str) -> Fraction | None:
        denominator = Fraction(bottom.replace(",", ""))
        return Fraction(top.replace(",", "")) / denominator if denominator else None

    if match["over"]:
        return fraction(match["over"], match["under"])
    if match["top"]:
        return fraction(match["top"], match["bottom"])
    if match["whole"]:
        part = fraction(match["part"], match["parts"])
        return None if part is None else Fraction(match["whole"].replace(",", "")) + part
    value = Fraction(match["decimal"].replace(",", "").rstrip(".") or "0")
    return value * Fraction(10) ** int(match["exponent"] or 0)
