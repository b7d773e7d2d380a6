"""The unit of a number: which words and signs are one, and by which name two of them are known to be the same."""

import re
from collections import Counter

_MULTIPLES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
# Spellings of one unit on a line each; the first is its name. A pound may be of money, C a degree or a coulomb.
UNITS = {
    spelling: line.split()[0]
    for line in """
    km kilometers kilometres kilometer kilometre
    m meters metres meter metre
    cm centimeters centimetres centimeter centimetre
    mm millimeters millimetres millimeter millimetre
    nm nanometers nanometres nanometer nanometre
    ft feet foot
    in inches inch
    mi miles mile
    yd yards yard
    acres acre
    kg kilograms kilogram
    g grams gram
    mg milligrams milligram
    lb lbs pounds pound £
    oz ounces ounce
    tons ton tonnes tonne
    gal gallons gallon
    qt quarts quart
    L l liters litres liter litre
    ml mL milliliters millilitres milliliter millilitre
    h hr hrs hours hour
    min mins minutes minute
    s sec secs seconds second
    ms milliseconds millisecond
    days day
    weeks week
    months month
    years year yr yrs
    am AM
    pm PM
    $ dollars dollar USD
    cents cent ¢
    € euros euro EUR
    ¥ yen yuan RMB
    ₹ rupees rupee
    % percent pct
    degrees degree deg
    rad radians radian
    C ℃ Celsius celsius coulombs coulomb
    F ℉ Fahrenheit fahrenheit farads farad
    K kelvin kelvins Kelvin
    N newtons newton Newtons
    J joules joule Joules
    kJ kilojoules
    W watts watt Watts
    kW kilowatts
    V volts volt Volts
    A amperes ampere amps amp
    mA milliamps
    T tesla teslas
    Pa pascals pascal
    kPa kilopascals
    Hz hertz
    kHz kilohertz
    eV
    Ω ohms ohm
    mol moles mole
    """.strip().splitlines()
    for spelling in line.split()
}
_CURRENCIES = {"$", "€", "¥", "₹"}
# Words that may stand at the number without a space; other letters there are algebra (4a, 2abc).
GLUED = {unit for unit in UNITS if len(unit) > 1 or not unit.isascii()}
GLUED_IN_PROSE = GLUED | set("mghsLl")
_NOT_UNITS = frozenset(
    "pi or and to plus minus times over sqrt sin cos tan sec csc cot log ln exp mod half halves third thirds quarter "  # noqa: SIM905
    "quarters if when where because since".split()
)
_CONNECTIVES = {"of", "a", "an", "in", "at", "by"}
_SPELLED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s*\^\s*\{?\s*(-?[1-9])\s*\}?|(?<=[A-Za-z])([23])\b", r"^\1\2"),
        (r"\b(?:square[\s-]|sq\b\.?)[\s-]*([A-Za-z]+)", r"\1^2"),
        (r"\bcubic[\s-]+([A-Za-z]+)", r"\1^3"),
        (r"\s+squared\b", "^2"),
        (r"\s+cubed\b", "^3"),
        (r"\bmph\b", "mi/h"),
        (r"\bkm?ph\b", "km/h"),
        (r"\bdegrees?\s*(?=[CF]\b|[Cc]elsius|[Ff]ahrenheit)", " "),
        (r"(?<=[\w.])\s*(?:\\cdot|[*·⋅])\s*(?=[A-Za-z])", " "),
        (r"[{}()]|^-|(?<=[A-Za-z])-(?=[A-Za-z])", " "),
        (r"[/]", " per "),
        (r"[%$€£¥₹¢]", r" \g<0> "),
    )
]

_WORD = re.compile(r"([^^]+?)[.,]*(?:\^(-?[1-9]))?[.,]*")
# ``5 - m`` and ``5/N`` are algebra, unlike ``5-mile`` and ``5/min``.
_ALGEBRA = re.compile(r"\s*(?:-\s|[-/]\s*[A-Za-z]\b)")


def read_unit(text: str) -> tuple[int, str]:
    """What the words after a number multiply it by (0 where they are no words of a unit), and the unit.

    The unit is the product of the well-known ones that the text begins with (``m s^-1``), or nothing.

    Arguments:
        text: All that follows the number.
    """
    if _ALGEBRA.match(text):
        return 0, ""
    spelled = text
    for pattern, replacement in _SPELLED:
        spelled = pattern.sub(replacement, spelled)
    found = [_WORD.fullmatch(word) for word in spelled.split()]
    words = [(match[1], match[2]) for match in found if match]
    if not found or len(words) < len(found):
        return int(not text.strip()), ""
    stems = [stem for stem, _ in words]
    if len(words) > 8 or stems[-1] == "per" or (stems[-1] in _CONNECTIVES and stems != ["in"]):
        return 0, ""
    if text[0].isalpha() and text[0] < "\u0530" and stems[0] not in GLUED:
        return 0, ""
    factor = _MULTIPLES.get(stems[0].lower())
    if not all(map(_is_unit, stems[1:] if factor else stems)):
        return 0, ""
    return factor or 1, _name(words[1:] if factor else words)


def currency(sign: str | None) -> str:
    """The unit that a sign before a number stands for."""
    return UNITS[sign] if sign else ""


def _is_unit(word: str) -> bool:
    return word.lower() not in _NOT_UNITS and bool(
        word in UNITS
        or word in _CONNECTIVES
        or re.fullmatch(r"[^\W\d_']{3,}|[^\W\d_']+'[^\W\d_]+|[^\x00-\u052f]+|[ap]\.m", word)
    )


def _name(words: list[tuple[str, str | None]]) -> str:
    powers: Counter[str] = Counter()
    sign = 1
    for stem, power in words:
        unit = UNITS.get(stem.replace(".", ""), "")
        if unit in _CURRENCIES and not powers:  # whatever it is paid for
            return unit
        if stem == "per":
            sign = -1
        elif not unit or unit in _CURRENCIES or (stem in _CONNECTIVES and not power and len(words) > 1):
            break
        else:
            powers[unit] += sign * int(power or 1)
    return " ".join(unit if power == 1 else f"{unit}^{power}" for unit, power in sorted(powers.items()))
