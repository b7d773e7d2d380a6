"""Reward ``text``: agreement with one or several reference texts.

    {"prompt": "Who wrote Hamlet?", "answer": ["William Shakespeare", "Shakespeare"]}
    completion "It was Shakespeare."    exact 0.0   contains 1.0   f1 0.5

Normalisation and token F1 as in SQuAD (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces;
the best reference counts. The sign and the decimal point of a number and the signs of a name (C++, C#) stay, and in
scripts without spaces every character is a word. Punctuation separates words, but not in 1,000 and U.S.A.
"""

import re
import string
import unicodedata
from collections import Counter
from typing import ClassVar

from counterpoint.rewards._base import Reward, Row, one_of, text_list
from counterpoint.rewards._regions import final_answer

MODES = ("exact", "contains", "f1")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’“”„–—…¿¡。、「」『』・", " "))  # noqa: RUF001
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MINUS = re.compile(r"(?<!\w)[-−](?=(?:point)?\d)")  # noqa: RUF001
_GROUPS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)")
_POINT = re.compile(r"(?<![\d.])(\d+|(?<!\w))\.(\d+)(?!\.?\d)")
_INITIAL = re.compile(r"(?<!\w)([^\W\d_])\.(?:\s?(?=[^\W\d_]\.)|(?=[^\W\d_](?!\w)))")
_NAME_SIGNS = re.compile(r"(?<=[^\W\d_])[+#]+(?!\w)")
_UNSPACED = re.compile(r"([\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff])")


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = _GROUPS.sub(lambda match: match[0].replace(",", ""), plain)
    plain = _INITIAL.sub(r"\1", _POINT.sub(r"\1point\2", plain))
    plain = _MINUS.sub("minus", plain)
    plain = _NAME_SIGNS.sub(lambda match: match[0].replace("+", "plus").replace("#", "sharp"), plain)
    plain = re.sub(r"(?<=\w)['’](?=\w)", "", plain)  # noqa: RUF001
    plain = _UNSPACED.sub(r" \1 ", plain.translate(_PUNCTUATION))
    return " ".join(_ARTICLES.sub(" ", plain).split())


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of token precision and recall of two normalised texts, in [0, 1]."""
    tokens, reference_tokens = text.split(), reference.split()
    common = sum((Counter(tokens) & Counter(reference_tokens)).values())
    return 2 * common / (len(tokens) + len(reference_tokens)) if common else 0.0


class TextReward(Reward):
    """Agreement of the completion with the best of the row's references.

    Arguments:
        mode: ``exact`` (equal after normalisation), ``contains`` (a reference stands in the completion as whole words)
            or ``f1`` (token F1).
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def __init__(self, mode: str = "exact", closed_thought: bool = False) -> None:
        self.__name__ = "text"
        self.mode = one_of("mode", mode, MODES)
        self.closed_thought = closed_thought

    def prepare(self, row: Row) -> list[str]:
        """The normalised references; a reference without any letter or digit is compared as it stands."""
        return [normalise(reference) or reference.strip() for reference in text_list(row["answer"], "answer")]

    def score(self, text: str, prepared: list[str]) -> float:
        """The best agreement, in [0, 1]."""
        answer = final_answer(text, self.closed_thought)
        plain = normalise(answer) or answer.strip()
        if not plain:
            return 0.0
        return max(self._agreement(plain, reference) for reference in prepared)

    def _agreement(self, plain: str, reference: str) -> float:
        if self.mode == "exact":
            return float(plain == reference)
        if self.mode == "contains":
            return float(bool(reference) and f" {reference} " in f" {plain} ")
        return token_f1(plain, reference)
