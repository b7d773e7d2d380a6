# ruff: noqa: RUF001 (patterns with the signs that people type)
"""Where a mathematical answer stands in a reply, and what kind of text it is."""

import re

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?:\s*\{|\s+(?P<bare>[^\s{}\\$]+))")
_WRAPPING = re.compile(r"\\(?:q?quad|[,;:!()\[\]])(?![A-Za-z])|\\text\s*\{([^{}]*)\}|[$~]")
_JOINTS = {"and", "or", "for", "part", "as", "well", "also", "with", "et", "und", "y", "e"}
_JOINTS |= {f"({letter})" for letter in "abcdef"} | {"i", "ii", "iii"}
INLINE = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$((?:\\[^\n]|[^$\\\n])+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_LEADING = re.compile(
    r"\s*[*_]*(?:\$\$(?P<a>.+?)\$\$|\$(?P<b>(?:\\[^\n]|[^$\\\n])+)\$|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\])", re.DOTALL
)
_FORMULA = re.compile(INLINE.pattern.replace(r"\n])+)\$", r"\n])+)\$(?!\d)"), re.DOTALL)
# Mathematics without signs around it: commands, numbers, operators, single letters.
_BARE = re.compile(
    r"(?:\\(?:text|mathrm|textbf)\s*\{[^{}\n]*\}|\\(?!begin|end)[A-Za-z]+|\\[,;!:]|[\d \t(){}\[\]^_+*/=<>.,|!×·÷√∞π-]"
    r"|(?<![^\W\d_])(?<!['’])[A-Za-z](?![^\W\d_]))+"
)
_QUANTITY = re.compile(r"[-\d.,\s]+[A-Za-z]\^\{?\d\}?")  # 12m^2
_TUPLE = re.compile(r"[(\[][-\d.\s/]+(?:,[-\d.\s/]+)+[)\]]")
_LABEL = re.compile(r"\\(?:textbf|text|mathrm|bold)\s*\{\s*\(([A-Z])\)\s*\}(?:\\(?:q?quad|[ ,;:!])|[\s~])*(\S.*)")
_BOLD = re.compile(r"\*\*([^*\n]+)\*\*")
_NUMBERED = re.compile(r"\s*\**\d+[.):]\s+\**[^\W\d]")
_MAX_BOXES, _MAX_CONTENT, _MAX_GAP = 50, 2000, 60
MAX_EXPRESSION = 300
_FUNCTIONS = {"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "frac", "cdot", "times", "inf"}


def boxed(text: str) -> str:
    """The content of the last ``\\boxed{}``; with those that stand right before it, joined by commas.

    ``\\boxed{2} and \\boxed{3}`` is one answer, ``2, 3``; words between two boxes make them two answers.
    """
    contents: list[str] = []
    end = len(text)
    for match in reversed(list(_BOX.finditer(text))[-_MAX_BOXES:]):
        content, after = _content(text, match)
        if after < 0 or not content:
            continue
        if contents and not _are_neighbours(text[after:end]):
            break
        end = match.start()
        if content not in contents:
            contents.insert(0, content)
    return ", ".join(contents)


def _content(text: str, match: re.Match[str]) -> tuple[str, int]:
    if match["bare"]:
        return match["bare"].rstrip(".,;"), match.end()
    depth = 1
    for position in range(match.end(), min(len(text), match.end() + _MAX_CONTENT)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[match.end() : position].strip(), position + 1
    return "", -1


def _are_neighbours(between: str) -> bool:
    """Whether nothing but commas and words like ``and`` stands between two boxes."""
    if len(between) > _MAX_GAP:
        return False
    # An operator between them makes a calculation of boxes, and is no such word.
    plain = _WRAPPING.sub(lambda match: f" {match[1] or ''} ", between)
    return all(word in _JOINTS for word in re.sub("[,;]", " ", plain.replace("&", " and ")).lower().split())


def _are_listed(between: str) -> bool:
    """The same of formulas, which mean one answer only on one line and with a comma or a word between."""
    return bool(between.strip()) and "\n" not in between and _are_neighbours(between)


def after_hashes(text: str) -> tuple[str, str]:
    """The line after the last ``####``, and what follows it."""
    _, marker, tail = text.rstrip("# \n").rpartition("####")
    line, _, rest = tail.strip().partition("\n")
    return (line.strip(), rest) if marker else ("", "")


def is_numbered(line: str) -> bool:
    """Whether a line is a numbered heading, ``1. Compute the total``."""
    return _NUMBERED.match(line) is not None


def unwrapped(text: str) -> str:
    """A text that is nothing but one formula in its signs (``$ $``, ``\\( \\)``, ``\\[ \\]``), without them."""
    match = INLINE.fullmatch(text.strip().rstrip("."))
    return next(filter(None, match.groups())).strip() if match else text


def leading_formula(text: str) -> str:
    """The formula that a text begins with, or nothing; formulas side by side are one, as boxes are."""
    match = _LEADING.match(text)
    if match is None:
        return ""
    found = [next(filter(None, match.groups())).strip()]
    while following := _FORMULA.search(text, match.end()):
        if not _are_listed(text[match.end() : following.start()]):
            break
        found.append(next(filter(None, following.groups())).strip())
        match = following
    return ", ".join(found)


def last_formula(text: str) -> str:
    """The last formula between signs, joined with those right before it by commas, or nothing."""
    contents: list[str] = []
    start = len(text)
    for match in reversed(list(_FORMULA.finditer(text))):
        if contents and not _are_listed(text[match.end() : start]):
            break
        start = match.start()
        contents.insert(0, next(filter(None, match.groups())).strip())
    return ", ".join(contents)


def bare_formula(text: str) -> str:
    """The last mathematics with a number in it that stands in prose as it is (``so x = \\frac{2}{5}``), or nothing.

    Numbers alone are none: it has a command or a power.
    """
    if "\\" not in text and "^" not in text and "√" not in text:
        return ""
    runs = [run for run in _BARE.findall(text[-2000:]) if any(sign.isdecimal() for sign in run)]
    parts = re.split(r"[.,;:!]\s+", runs[-1].strip(" \t.,;:!*|")) if runs else []
    last = next((part for part in reversed(parts) if any(sign.isdecimal() for sign in part)), "")
    last = re.sub(r"^(?:a|I)\s+(?=[\d\\])", "", last.strip(" \t*|"))
    last = last[1:-1] if re.fullmatch(r"\([^()]*\)", last) and "," not in last else last
    has_more = re.search(r"\\[A-Za-z]|(?<=[\w})])\^|√", last)
    return last if has_more and not _QUANTITY.fullmatch(last) else ""


def last_tuple(text: str) -> str:
    """The last point or interval of plain numbers, or nothing."""
    found = _TUPLE.findall(text)
    return found[-1] if found else ""


def labelled(text: str) -> tuple[str, str] | None:
    """Letter and content of an answer with its label, ``\\textbf{(C)}\\ 7``."""
    match = _LABEL.fullmatch(text.strip())
    return (match[1], match[2]) if match else None


def last_bold(text: str) -> str:
    """The last text in Markdown's bold."""
    found = _BOLD.findall(text)
    return found[-1].strip() if found else ""


def is_formula(text: str) -> bool:
    """Whether a text is one line of mathematics: no words but functions' names, in any script."""
    if "\n" in text or len(text) > MAX_EXPRESSION:
        return False
    words = re.findall(r"(?<![\\A-Za-z0-9])[^\W\d_]{2,}", re.sub(r"\\(?:text|mathrm)\s*\{[^{}]*\}", "", text))
    return all(word in _FUNCTIONS for word in words) and not re.search(r"[\u0590-\u1fff\u3040-\ud7ff]", text)
