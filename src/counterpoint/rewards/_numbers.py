"""Reading numbers as people write them, exactly."""

import re
from fractions import Fraction
from typing import NamedTuple

from counterpoint.rewards._numerals import ascii_numerals
from counterpoint.rewards._units import GLUED_IN_PROSE, currency, read_unit

_MAX_DIGITS = 400

_DIGITS = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_TIMES_TEN_TO = r"(?:[eE]|\s*(?:\\times|\\cdot|[x×*])\s*10\s*\^\s*\{?\s*)"  # noqa: RUF001
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?:(?:US)?(?P<currency>[$£€¥₹])\s*)?(?P<inner>[-+]?)\s*
    (?: \\[dt]?frac\s*\{{\s*(?P<over>-?{_DECIMAL})\s*\}}\s*\{{\s*(?P<under>{_DECIMAL})\s*\}}
      | (?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})(?!\s*/)
      | (?P<whole>{_DIGITS})(?:\s+and)?\s+(?P<part>\d+)\s*/\s*(?P<parts>\d+)
      | (?P<decimal>{_DECIMAL})(?:{_TIMES_TEN_TO}(?P<exponent>[-+]?\d{{1,3}})(?:\s*\}})?
        | (?<=[\d.])\\(?:overline|bar|dot)\s*\{{\s*(?P<period>\d+)\s*\}})?
    )""",
    re.VERBOSE,
)
# A comma that separates no thousands is a decimal comma: 2,74 and 1.234,56 and 0,125.
_COMMA_DECIMAL = re.compile(r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+|\d+),(\d{1,2}|\d{4,}|(?<=(?<!\d)0,)\d{3})(?![\d,.]*\d)")
_POINTS_BETWEEN_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.,])")
_NAMED_AFTER = re.compile(r"\A([^=]*\d[^=A-Za-z]*)=\s*([a-zA-Z])\Z")
_NAME = re.compile(r"\(?\s*([a-zA-Z])\s*=\s*")
_BASE = re.compile(r"([0-9A-Fa-f]+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_LAST_NUMBER = re.compile(
    rf"(?<![A-Za-z0-9_.^\u00c0-\u052f])(?<!\^\{{)[-]?\s?[$£€]?\s?[-]?(?:{_DECIMAL})(?:\s*/\s*{_DIGITS}(?![\w.]*/))?"
)
_BETWEEN = re.compile(r"\s*(?:[,;]|\band\b|\bor\b|,\s*(?:and|or)\b)\s*")
_LATEX_NOISE = re.compile(r"\\(?:(?:left|right|displaystyle|quad|ldots|bf|large|Large)(?![A-Za-z])|[,!;:])|~")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|textnormal|mathbf|mbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_MIXED = re.compile(r"(?<=\d)\s*\\[dt]?frac\s*(?:(\d)\s*(\d)|\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\})")

_SIGNS = {"Omega": " Ω", "degree": " degrees", "pounds": "£", "euro": "€", "dollar": "$", "percent": "%"}
_SPELLED = re.compile(rf"\\({'|'.join(_SIGNS)})(?![A-Za-z])\s*")


class Number(NamedTuple):
    """A number as it was written.

    Attributes:
        value: Exactly.
        name: The letter before an equals sign (``x = 5``), or nothing.
        unit: The unit's usual name where it is a well-known one, or nothing.
    """

    value: Fraction
    name: str = ""
    unit: str = ""

    def agrees(self, other: "Number") -> bool:
        """Whether both are the same number, neither of them said to be that of another letter or unit."""
        return (
            self.value == other.value
            and (not self.name or not other.name or self.name == other.name)
            and (not self.unit or not other.unit or self.unit == other.unit)
        )


def parse_number(text: str, comma: bool = False) -> Number | None:
    """The number that a whole text is, or None.

    Thousands' commas, ``$`` and other currency, ``%`` (dropped: 50% is 50), a trailing full stop, ``\\frac`` and plain
    fractions, mixed numbers, scientific notation, ``72_8`` (of base 8), ``x = 5``, ``5 million`` and words of units
    after the number are understood.

    Arguments:
        text: Any text.
        comma: Whether ``2,74`` is read as 2.74; otherwise it is no number, for it may be a list.
    """
    text, name = _clean(text[: 2 * _MAX_DIGITS + 1])
    if not text or len(text) > _MAX_DIGITS:
        return None
    if comma:
        text = decimal_points(text)
    match = _NUMBER.match(text)
    if match is None:
        return _of_base(text, name)
    rest = text[match.end() :]
    factor, unit = read_unit(rest) if rest else (1, "")
    value = _value(match)
    if not factor or value is None:
        return _of_base(text, name)
    value = value if factor == 1 else value * factor
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return Number(-value if negative else value, name, currency(match["currency"]) or unit)


def last_number(text: str) -> Number | None:
    """The last number in a text; None where it is part of a formula (``3x``) or the end of a list of three or more."""
    text = ascii_numerals(text[-20_000:]).replace("\\$", "$").replace("{,}", ",")
    matches = list(_LAST_NUMBER.finditer(text := decimal_points(text)))
    if not matches or _ends_list(text, matches) or is_factor(text[matches[-1].end() :]):
        return None
    return parse_number(matches[-1].group().replace("$", ""))  # the sign may end a formula


def decimal_points(text: str) -> str:
    """Decimal commas as points, where no other reading is left."""
    if "," not in text:
        return text
    return _COMMA_DECIMAL.sub(lambda match: match[1].replace(".", "") + "." + match[2], text)


def first_number(text: str) -> re.Match[str] | None:
    """The number that a text begins with, currency included."""
    return _LAST_NUMBER.match(text)


def is_factor(rest: str) -> bool:
    """Whether what follows a number at once makes it part of a formula."""
    letters = re.match(r"[A-Za-z]+", rest)
    if letters:
        return not (letters[0] in GLUED_IN_PROSE or _ORDINAL.match(rest))
    return bool(re.match(r"[_^]|!\s*[\w$)*/+-]|\s*\\(?:sqrt|pi|frac|cdot)", rest))


def _ends_list(text: str, matches: list[re.Match[str]]) -> bool:
    if len(matches) < 3:
        return False
    first, second, third = matches[-3:]
    gaps = (text[first.end() : second.start()], text[second.end() : third.start()])
    return all(_BETWEEN.fullmatch(gap) for gap in gaps)


def _clean(text: str) -> tuple[str, str]:
    """A text without what does not change its number, and the letter that it is said to be the value of."""
    text = ascii_numerals(text).strip().strip("*_`")
    if "\\" in text or "{" in text:
        text = re.sub(r"\{\s*,\s*\}", ",", text.replace("\\$", "$").replace("\\%", "%")).replace("\\ ", " ")
        text = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", ",", text)
        text = re.sub(r"\s+\^", "^", _LATEX_TEXT.sub(r" \1 ", _LATEX_NOISE.sub(" ", text))).strip()
        text = re.sub(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})", " degrees", text)
        text = _SPELLED.sub(lambda match: _SIGNS[match[1]], text)
        text = _MIXED.sub(_mixed, text)
    if text.startswith("$") and (end := text.rfind("$")) > 0:
        text = f"{text[1:end].strip('$').strip()}{text[end + 1 :]}"
    if "=" in text:
        text = _NAMED_AFTER.sub(r"\2 = \1", text)
    name = _NAME.match(text)
    text = text[name.end() :] if name else text
    if text.count(".") > 1:
        text = _POINTS_BETWEEN_THOUSANDS.sub(lambda match: match[0].replace(".", ""), text)
    if " " in text:
        text = re.sub(r"(?<=\d) (?=\d{3}(?: \d{3})*(?!\s*[/\d]))", _thousands(text), text)
    return text.replace("°", " degrees").rstrip(".,;: \n\\").strip(), name[1] if name else ""


def _mixed(match: re.Match[str]) -> str:
    """The fraction after a whole number; a product where it is none of a mixed number."""
    top, bottom = match[1] or match[3], match[2] or match[4]
    return f" {top}/{bottom}" if int(top) < int(bottom) else match[0]


def _thousands(text: str) -> str:
    """What takes the place of a space between thousands: nothing where a decimal comma follows (``1 234,5``)."""
    return "" if re.search(r"\d \d{3},\d{1,2}(?!\d)", text) else ","


def _of_base(text: str, name: str) -> Number | None:
    match = _BASE.fullmatch(text)
    if match is None or not 2 <= int(match[2]) <= 16:
        return None
    try:
        return Number(Fraction(int(match[1], int(match[2]))), name)
    except ValueError:  # it has digits that its base has not
        return None


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
    digits = match["decimal"].replace(",", "").rstrip(".") or "0"
    value = Fraction(int(digits)) if digits.isdecimal() else Fraction(digits)
    if period := match["period"]:
        _, point, places = match["decimal"].partition(".")
        return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places)) if point else None
    exponent = match["exponent"]
    return value * Fraction(10) ** int(exponent) if exponent else value
