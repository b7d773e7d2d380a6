# ruff: noqa: E501, RUF001 (patterns and tables, with the signs that people type)
"""Digits and signs of all scripts as ASCII, so that one grammar of numbers reads them."""

import re
import unicodedata

_SIGNS = str.maketrans({
    "−": "-", "–": "-", "﹣": "-", "－": "-", "＋": "+", "＝": "=", "％": "%", "٪": "%", "＄": "$", "，": ",", "．": ".", "：": ":",
    "（": "(", "）": ")", "。": ". ", "٫": ".", "٬": ",", "、": ", ", "／": "/", "！": "!", "？": "?", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "\u200b": "", "\ufeff": "", "\u2061": "", "\u2062": "", "\u200e": "", "\u200f": "",
})  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True))
_RAISED = re.compile(f"(?<=[0-9)a-zA-Z])[{''.join(_SUPERSCRIPTS)}]+")


def ascii_numerals(text: str) -> str:
    """``text`` with digits of any script, fractions (½), raised digits (10⁴) and full-width marks in ASCII."""
    if text.isascii():
        return text
    text = _RAISED.sub(lambda match: "^{" + "".join(_SUPERSCRIPTS[sign] for sign in match[0]) + "}", text)
    return "".join(sign if sign.isascii() else _plain(sign) for sign in text.translate(_SIGNS))


def _plain(sign: str) -> str:
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    if unicodedata.decomposition(sign).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", sign).replace("\u2044", "/")
    return sign
