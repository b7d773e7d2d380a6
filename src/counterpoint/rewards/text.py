"""Reward ``text``: agreement with one or several reference texts.

    {"prompt": "Who wrote Hamlet?", "answer": ["William Shakespeare", "Shakespeare"]}
    completion "It was Shakespeare."    exact 0.0   contains 1.0   f1 0.5

Normalisation and token F1 as in SQuAD (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces;
the best reference counts.
"""

import re
import string
import unicodedata
from collections import Counter
from typing import ClassVar

from counterpoint.rewards._base import Reward, Row, one_of, text_list
from counterpoint.rewards._regions import final_answer

MODES = ("exact", "contains", "f1")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "‘’“”„–—…¿¡", " "))  # noqa: RUF001
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = re.sub(r"(?<=\w)['’](?=\w)", "", plain)  # noqa: RUF001
    return " ".join(_ARTICLES.sub(" ", plain.translate(_PUNCTUATION)).split())


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
    """

    columns: ClassVar[tuple[str, ...]] = ("answer",)

    def __init__(self, mode: str = "exact") -> None:
        self.__name__ = "text"
        self.mode = one_of("mode", mode, MODES)

    def prepare(self, row: Row) -> list[str]:
        """The normalised references; a reference without any letter or digit is compared as it stands."""
        return [normalise(reference) or reference.strip() for reference in text_list(row["answer"], "answer")]

    def score(self, text: str, prepared: list[str]) -> float:
        """The best agreement, in [0, 1]."""
        answer = final_answer(text)
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
