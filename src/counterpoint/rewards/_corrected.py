"""Checkers of ``if-verifiable`` that are wrong, put right.

Its port of IFBench is older than upstream's corrections of December 2025 to May 2026, and some faults are upstream's
own. Each class here changes one check and nothing else of it.
"""

import datetime
import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves this that these those who whom whose what which whoever whomever
whatever whichever anyone anybody anything everyone everybody everything someone somebody something nobody nothing none
each either neither both few many several all any some one another other others
""".split()  # noqa: SIM905


def corrected(checkers: Mapping[str, Any]) -> dict[str, Any]:
    """The checkers, those with a correction replaced by it; one that a release lacks stays missing."""
    made = {name: make(checkers[name]) for name, make in _CORRECTIONS.items() if name in checkers}
    return {**checkers, **made}


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _person_names(base: Any) -> Any:
    class PersonNames(base):  # type: ignore[misc]
        """Names as whole words: Miami does not mention Mia."""

        def check_following(self, value: str) -> bool:
            names = re.findall(r"\w+", self._description_pattern.rpartition(":")[2])
            return sum(bool(re.search(rf"\b{name}\b", value)) for name in names) >= self._num_person_names

    return PersonNames


def _keywords_multiple(base: Any) -> Any:
    class KeywordsMultiple(base):  # type: ignore[misc]
        """Keywords counted as whole words."""

        def check_following(self, value: str) -> bool:
            keywords = (getattr(self, f"_keyword{number}") for number in range(1, 6))
            return all(
                len(_whole(word).findall(value)) == count for word, count in zip(keywords, (1, 2, 3, 5, 7), strict=True)
            )

    return KeywordsMultiple


def _repeat_span(base: Any) -> Any:
    class RepeatSpan(base):  # type: ignore[misc]
        """The words at the given places of the prompt's characters, or the characters themselves; 0 is a place."""

        _n_start: Any
        _n_end: Any

        def build_description(self, prompt_to_repeat: Any = None, n_start: Any = None, n_end: Any = None) -> Any:
            described = super().build_description(prompt_to_repeat, n_start, n_end)
            self._n_start = self._n_start if n_start is None else n_start
            self._n_end = self._n_end if n_end is None else n_end
            return described

        def check_following(self, value: str) -> bool:
            text, start, end = self._prompt_to_repeat, self._n_start, self._n_end
            words = [word[0] for word in re.finditer(r"\S+", text) if word.start() <= end and word.end() > start]
            spans = (" ".join(words), text[start:end], text[start : end + 1])
            return value.lower().split() in [span.lower().split() for span in spans]

    return RepeatSpan


def _pronouns(base: Any) -> Any:
    class Pronouns(base):  # type: ignore[misc]
        """All pronouns, also demonstrative and indefinite ones."""

        def check_following(self, value: str) -> bool:
            words = re.findall(r"[a-z]+", value.lower())
            return sum(word in _PRONOUNS for word in words) >= self._num_pronouns

    return Pronouns


def _some_questions(base: Any) -> Any:
    class SomeQuestions(base):  # type: ignore[misc]
        """A ratio of sentences needs sentences: none of a kind is no share of it."""

        def check_following(self, value: str) -> bool:
            return "?" in value and bool(super().check_following(value))

    return SomeQuestions


def _vowel(base: Any) -> Any:
    class Vowels(base):  # type: ignore[misc]
        """One paragraph may have several lines."""

        def check_following(self, value: str) -> bool:
            one = not re.search(r"\n\s*\n", value.strip())
            return one and bool(super().check_following(" ".join(value.split())))

    return Vowels


def _line_indent(base: Any) -> Any:
    class LineIndent(base):  # type: ignore[misc]
        """Empty lines do not count, however many; one line is no stairs."""

        def check_following(self, value: str) -> bool:
            indents = [len(line) - len(line.lstrip()) for line in value.split("\n") if line.strip()]
            return len(indents) > 1 and all(a < b for a, b in itertools.pairwise(indents))

    return LineIndent


def _letter_frequency(base: Any) -> Any:
    class LetterFrequency(base):  # type: ignore[misc]
        """Signs are counted as letters are; upstream takes a random letter instead."""

        def build_description(self, *, letter: Any = None, **kwargs: Any) -> Any:
            described = super().build_description(letter=letter, **kwargs)
            if isinstance(letter, str) and len(letter) == 1:
                self._letter = letter.lower()
            return described

    return LetterFrequency


def _response_language(base: Any) -> Any:
    class ResponseLanguage(base):  # type: ignore[misc]
        """A text without a detectable language is in none; of one or two words only the script can be told."""

        def check_following(self, value: str) -> bool:
            letters = [sign for sign in value if sign.isalpha()]
            script = next((name for name, spoken in _SCRIPTS.items() if self._language in spoken.split()), None)
            if not letters or script is None or len(value.split()) > 2:
                return bool(letters) and bool(super().check_following(value))
            return all(unicodedata.name(sign, "").startswith(script) for sign in letters)

    return ResponseLanguage


def _english_case(base: Any, capital: bool) -> Any:
    import langdetect

    class EnglishCase(base):  # type: ignore[misc]
        """The language is told from words in lower case, and of a few plain words not at all."""

        def check_following(self, value: str) -> bool:
            if not (value.isupper() if capital else value.islower()):
                return False
            return (value.isascii() and len(value.split()) <= _FEW_WORDS) or langdetect.detect(value.lower()) == "en"

    return EnglishCase


def _nth_paragraph(base: Any) -> Any:
    class NthParagraph(base):  # type: ignore[misc]
        """Paragraphs are counted without the empty ones between longer breaks."""

        def check_following(self, value: str) -> bool:
            paragraphs = [part for part in re.split(r"\n\s*\n", value) if part.strip()]
            return bool(super().check_following("\n\n".join(paragraphs)))

    return NthParagraph


def _literal_keywords(base: Any) -> Any:
    class LiteralKeywords(base):  # type: ignore[misc]
        """Keywords are texts, not patterns."""

        def check_following(self, value: str) -> bool:
            return all(keyword.lower() in value.lower() for keyword in self._keywords)

    return LiteralKeywords


def _literal_frequency(base: Any) -> Any:
    class LiteralFrequency(base):  # type: ignore[misc]
        """The keyword is a text, not a pattern."""

        def check_following(self, value: str) -> bool:
            count = value.lower().count(self._keyword.lower())
            return count < self._frequency if self._comparison_relation == "less than" else count >= self._frequency

    return LiteralFrequency


def _literal_forbidden(base: Any) -> Any:
    class LiteralForbidden(base):  # type: ignore[misc]
        """Forbidden words are whole words, not patterns."""

        def check_following(self, value: str) -> bool:
            return not any(_whole(word).search(value) for word in self._forbidden_words)

    return LiteralForbidden


def _sections(base: Any) -> Any:
    class Sections(base):  # type: ignore[misc]
        """The word before a section's number is a text, not a pattern."""

        def check_following(self, value: str) -> bool:
            return len(re.findall(rf"{re.escape(self._section_spliter)}\s?\d+", value)) >= self._num_sections

    return Sections


def _postscript(base: Any) -> Any:
    class Postscript(base):  # type: ignore[misc]
        """A marker that is neither P.S. nor P.P.S is a text, not a pattern."""

        def check_following(self, value: str) -> bool:
            marker = self._postscript_marker
            usual = marker in ("P.S.", "P.P.S")
            return bool(super().check_following(value)) if usual else marker.lower() in value.lower()

    return Postscript


def _bullets(base: Any) -> Any:
    class Bullets(base):  # type: ignore[misc]
        """A line across the page is no bullet."""

        def check_following(self, value: str) -> bool:
            return bool(super().check_following(re.sub(r"(?m)^\s*-{3,}\s*$", "", value)))

    return Bullets


def _conjunctions(base: Any) -> Any:
    class Conjunctions(base):  # type: ignore[misc]
        """Different words: ``and``, ``And`` and ``and,`` are one."""

        def check_following(self, value: str) -> bool:
            words = set(re.findall(r"[a-z]+", value.lower()))
            return len(words & {"and", "but", "for", "nor", "or", "so", "yet"}) >= self._num_conjunctions

    return Conjunctions


def _unique_words(base: Any) -> Any:
    class UniqueWords(base):  # type: ignore[misc]
        """A dash is no word."""

        def check_following(self, value: str) -> bool:
            words = (word.strip(string.punctuation) for word in value.lower().split())
            return len({word for word in words if any(map(str.isalnum, word))}) >= self._num_unique_words

    return UniqueWords


def _dates(base: Any) -> Any:
    class Dates(base):  # type: ignore[misc]
        """Days that there are: no month 0, and 29 February in leap years only."""

        def check_following(self, value: str) -> bool:
            try:
                for day in value.strip().split(","):
                    datetime.date.fromisoformat(day.strip())
            except ValueError:
                return False
            return bool(super().check_following(value))

    return Dates


def _thesis(base: Any) -> Any:
    class Thesis(base):  # type: ignore[misc]
        """A thesis in ``<em>`` is read as one in ``<i>``."""

        def check_following(self, value: str) -> bool:
            return bool(super().check_following(re.sub(r"<(/?)em>", r"<\1i>", value)))

    return Thesis


def _sub_bullets(base: Any) -> Any:
    class SubBullets(base):  # type: ignore[misc]
        """Bullets there must be before each can have its own."""

        def check_following(self, value: str) -> bool:
            return "*" in value and bool(super().check_following(value))

    return SubBullets


def _sentences_then_bullets(base: Any) -> Any:
    class SentencesThenBullets(base):  # type: ignore[misc]
        """Empty lines separate, and end nothing."""

        def check_following(self, value: str) -> bool:
            return bool(super().check_following("\n".join(line for line in value.split("\n") if line.strip())))

    return SentencesThenBullets


def _paragraph_ends(base: Any) -> Any:
    class ParagraphEnds(base):  # type: ignore[misc]
        """Words are compared without the signs at their ends."""

        def check_following(self, value: str) -> bool:
            lines = [re.findall(r"\w+(?:['’-]\w+)*", line.lower()) for line in value.split("\n")]  # noqa: RUF001
            return all(words[0] == words[-1] for words in lines if words)

    return ParagraphEnds


_FEW_WORDS = 5
# How a letter's Unicode name begins, and the languages that are written so.
_SCRIPTS = {
    "LATIN": "en de fr es pt it fi nl sv da no pl cs sk sl hr hu ro tr vi id sw tl ca et lv lt af sq cy so",
    "CYRILLIC": "ru uk bg mk",
    "GREEK": "el",
    "ARABIC": "ar fa ur",
    "HEBREW": "he",
    "DEVANAGARI": "hi mr ne",
    **{"BENGALI": "bn", "GUJARATI": "gu", "GURMUKHI": "pa", "KANNADA": "kn", "MALAYALAM": "ml"},
    **{"TAMIL": "ta", "TELUGU": "te", "THAI": "th", "HANGUL": "ko"},
}
_CORRECTIONS: dict[str, Callable[[Any], Any]] = {
    "count:person_names": _person_names,
    "count:keywords_multiple": _keywords_multiple,
    "repeat:repeat_span": _repeat_span,
    "count:pronouns": _pronouns,
    "ratio:sentence_type": _some_questions,
    "ratio:sentence_balance": _some_questions,
    "words:vowel": _vowel,
    "format:line_indent": _line_indent,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "change_case:english_capital": partial(_english_case, capital=True),
    "change_case:english_lowercase": partial(_english_case, capital=False),
    "detectable_format:multiple_sections": _sections,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "count:conjunctions": _conjunctions,
    "count:unique_word_count": _unique_words,
    "custom:date_format_list": _dates,
    "format:thesis": _thesis,
    "format:sub-bullets": _sub_bullets,
    "format:no_bullets_bullets": _sentences_then_bullets,
    "words:paragraph_last_first": _paragraph_ends,
    "keywords:existence": _literal_keywords,
    "keywords:frequency": _literal_frequency,
    "keywords:forbidden_words": _literal_forbidden,
}
