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

Usual = Callable[[str], Any]

_PRONOUNS = """
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves this that these those who whom whose what which whoever whomever
whatever whichever anyone anybody anything everyone everybody everything someone somebody something nobody nothing none
each either neither both few many several all any some one another other others
""".split()  # noqa: SIM905


def corrected(checkers: Mapping[str, Any]) -> dict[str, Any]:
    """The checkers, those with a correction replaced by it; one that a release lacks stays missing."""
    made = {name: make(checkers[name]) for name, make in _CLASSES.items() if name in checkers}
    made |= {name: _checking(checkers[name], check) for name, check in _CHECKS.items() if name in checkers}
    return {**checkers, **made}


def _checking(base: Any, check: Callable[[Any, str, Usual], bool]) -> Any:
    """``base`` with another check, which may ask its usual one."""

    class Corrected(base):  # type: ignore[misc]
        def check_following(self, value: str) -> bool:
            return check(self, value, super().check_following)

    return Corrected


def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)


def _words(text: str) -> list[str]:
    """Words in lower case, with the signs inside (well-read, 1,000) and not those around them."""
    return re.findall(r"\w+(?:[^\w\s–—]\w+)*", text.casefold())  # noqa: RUF001


def _person_names(checker: Any, value: str, usual: Usual) -> bool:
    """Names as whole words: Miami does not mention Mia."""
    names = re.findall(r"\w+", checker._description_pattern.rpartition(":")[2])
    return sum(bool(re.search(rf"\b{name}\b", value)) for name in names) >= checker._num_person_names


def _keywords_multiple(checker: Any, value: str, usual: Usual) -> bool:
    """Keywords counted as whole words."""
    keywords = (getattr(checker, f"_keyword{number}") for number in range(1, 6))
    return all(len(_whole(word).findall(value)) == count for word, count in zip(keywords, (1, 2, 3, 5, 7), strict=True))


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


def _pronouns(checker: Any, value: str, usual: Usual) -> bool:
    """All pronouns, also demonstrative and indefinite ones."""
    words = re.findall(r"[a-z]+", value.lower())
    return sum(word in _PRONOUNS for word in words) >= checker._num_pronouns


def _needing(checker: Any, value: str, usual: Usual, sign: str) -> bool:
    """A share of nothing is none: without the sign there is nothing that could have what is asked for."""
    return sign in value and bool(usual(value))


def _vowel(checker: Any, value: str, usual: Usual) -> bool:
    """One paragraph may have several lines."""
    one = not re.search(r"\n\s*\n", value.strip())
    return one and bool(usual(" ".join(value.split())))


def _line_indent(checker: Any, value: str, usual: Usual) -> bool:
    """Empty lines do not count, however many; one line is no stairs."""
    indents = [len(line) - len(line.lstrip()) for line in value.split("\n") if line.strip()]
    return len(indents) > 1 and all(a < b for a, b in itertools.pairwise(indents))


def _letter_frequency(base: Any) -> Any:
    class LetterFrequency(base):  # type: ignore[misc]
        """Signs are counted as letters are, and several letters refused; upstream takes a random letter instead."""

        def build_description(self, *, letter: Any = None, **kwargs: Any) -> Any:
            described = super().build_description(letter=letter, **kwargs)
            if isinstance(letter, str):
                if len(letter) != 1:
                    raise ValueError("a letter is one sign")
                self._letter = letter.lower()
            return described

    return LetterFrequency


def _response_language(base: Any) -> Any:
    from langdetect import LangDetectException, detect, detector_factory

    class ResponseLanguage(base):  # type: ignore[misc]
        """Any language that can be detected; a text without one is in none; of one or two words the script is told."""

        def build_description(self, *, language: Any = None) -> Any:
            if language is None:
                return super().build_description()
            detector_factory.init_factory()
            known = [*detector_factory._factory.get_lang_list(), "zh"]
            if language not in known:
                raise ValueError(f"no language {language!r} is known, but {', '.join(sorted(known))}")
            self._language = language
            return f"Your ENTIRE response should be in {language} language, no other language is allowed."

        def check_following(self, value: str) -> bool:
            letters = [sign for sign in value if sign.isalpha()]
            script = next((name for name, spoken in _SCRIPTS.items() if self._language in spoken.split()), None)
            if script and len(value.split()) <= 2:
                return bool(letters) and all(unicodedata.name(sign, "").startswith(script) for sign in letters)
            try:
                found = detect(value)
            except LangDetectException:
                return False
            return bool(found == self._language or (self._language == "zh" and found.startswith("zh-")))

    return ResponseLanguage


def _english_case(checker: Any, value: str, usual: Usual, capital: bool) -> bool:
    """The language is told from words in lower case, and of a few plain words not at all."""
    import langdetect  # the checkers have it loaded

    if not (value.isupper() if capital else value.islower()):
        return False
    return (value.isascii() and len(value.split()) <= _FEW_WORDS) or langdetect.detect(value.lower()) == "en"


def _nth_paragraph(checker: Any, value: str, usual: Usual) -> bool:
    """Paragraphs are counted without the empty ones between longer breaks."""
    paragraphs = [part for part in re.split(r"\n\s*\n", value) if part.strip()]
    return bool(usual("\n\n".join(paragraphs)))


def _literal_keywords(checker: Any, value: str, usual: Usual) -> bool:
    """Keywords are texts, not patterns."""
    return all(keyword.lower() in value.lower() for keyword in checker._keywords)


def _literal_frequency(checker: Any, value: str, usual: Usual) -> bool:
    """The keyword is a text, not a pattern."""
    count = value.lower().count(checker._keyword.lower())
    return count < checker._frequency if checker._comparison_relation == "less than" else count >= checker._frequency


def _literal_forbidden(checker: Any, value: str, usual: Usual) -> bool:
    """Forbidden words are whole words, not patterns."""
    return not any(_whole(word).search(value) for word in checker._forbidden_words)


def _sections(checker: Any, value: str, usual: Usual) -> bool:
    """The word before a section's number is a text, not a pattern."""
    return len(re.findall(rf"{re.escape(checker._section_spliter)}\s?\d+", value)) >= checker._num_sections


def _postscript(checker: Any, value: str, usual: Usual) -> bool:
    """A marker that is neither P.S. nor P.P.S is a text, not a pattern."""
    marker = checker._postscript_marker
    is_known = marker in ("P.S.", "P.P.S")
    return bool(usual(value)) if is_known else marker.lower() in value.lower()


def _bullet_signs(text: str) -> list[str]:
    """The signs of bullets, of each line that begins with one and goes on.

    A space may be missing (``*Rain``) where the sign can be neither emphasis (``*Rain* falls``) nor a minus.
    """
    spaced, close = r"[ \t]+(?![ \t*-]*$)", r"(?![\s\d*-])(?!(?<=\*)[^*\n]*\*(?!\*))"
    return re.findall(rf"(?m)^[ \t]*([*-])(?:{spaced}|{close})", text)


def _bullets(checker: Any, value: str, usual: Usual) -> bool:
    """Neither a line across the page nor one that begins in italics is a bullet."""
    return len(_bullet_signs(value)) == checker._num_bullets


def _sub_bullets(checker: Any, value: str, usual: Usual) -> bool:
    """Bullets are lines: asterisks and hyphens inside of one are none."""
    return bool(re.fullmatch(r"-*(\*-+)+", "".join(_bullet_signs(value))))


def _conjunctions(checker: Any, value: str, usual: Usual) -> bool:
    """Different words: ``and``, ``And`` and ``and,`` are one."""
    words = set(re.findall(r"[a-z]+", value.lower()))
    return len(words & {"and", "but", "for", "nor", "or", "so", "yet"}) >= checker._num_conjunctions


def _unique_words(checker: Any, value: str, usual: Usual) -> bool:
    """A dash is no word."""
    words = (word.strip(string.punctuation) for word in value.lower().split())
    return len({word for word in words if any(map(str.isalnum, word))}) >= checker._num_unique_words


def _dates(checker: Any, value: str, usual: Usual) -> bool:
    """Days that there are: no month 0, and 29 February in leap years only."""
    try:
        for day in value.strip().split(","):
            datetime.date.fromisoformat(day.strip())
    except ValueError:
        return False
    return bool(usual(value))


def _thesis(checker: Any, value: str, usual: Usual) -> bool:
    """A thesis in ``<em>`` is read as one in ``<i>``."""
    return bool(usual(re.sub(r"<(/?)em>", r"<\1i>", value)))


def _sentences_then_bullets(checker: Any, value: str, usual: Usual) -> bool:
    """Empty lines separate, and end nothing."""
    return bool(usual("\n".join(line for line in value.split("\n") if line.strip())))


def _paragraph_ends(checker: Any, value: str, usual: Usual) -> bool:
    """Words are compared without the signs at their ends."""
    lines = map(_words, value.split("\n"))
    return all(words[0] == words[-1] for words in lines if words)


def _sentence_words(checker: Any, value: str, usual: Usual) -> bool:
    """All words are different, as the instruction says."""
    words = _words(value)
    return len(set(words)) == len(words) and bool(usual(value))


def _sentence_alphabet(checker: Any, value: str, usual: Usual) -> bool:
    """A sentence in quotes begins with its first letter."""
    return bool(usual(re.sub(r"[\"'“”‘’«»]", "", value)))  # noqa: RUF001


def _quote_unquote(checker: Any, value: str, usual: Usual) -> bool:
    """Where nothing is quoted, nothing needs an explanation."""
    return not re.search('["“”]', value) or bool(usual(value))


def _words_position(checker: Any, value: str, usual: Usual) -> bool:
    """Signs are no words, and case does not count."""
    words = _words(value)
    return words[1:2] == words[-2:-1] == _words(checker._keyword)


def _keyword_position(checker: Any, value: str, usual: Usual) -> bool:
    """Signs are no words, and case does not count."""
    from if_verifiable.ifbench.instructions_util import split_into_sentences  # the checkers have it loaded

    sentences = split_into_sentences(value)[checker._n - 1 : checker._n]
    return [_words(sentence)[checker._m - 1 : checker._m] for sentence in sentences] == [_words(checker._keyword)]


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
_CLASSES: dict[str, Callable[[Any], Any]] = {
    "repeat:repeat_span": _repeat_span,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
}
_CHECKS: dict[str, Callable[[Any, str, Usual], bool]] = {
    "count:person_names": _person_names,
    "count:keywords_multiple": _keywords_multiple,
    "count:pronouns": _pronouns,
    "ratio:sentence_type": partial(_needing, sign="?"),
    "ratio:sentence_balance": partial(_needing, sign="?"),
    "words:vowel": _vowel,
    "format:line_indent": _line_indent,
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
    "ratio:sentence_words": _sentence_words,
    "custom:sentence_alphabet": _sentence_alphabet,
    "format:quote_unquote": _quote_unquote,
    "words:words_position": _words_position,
    "words:keywords_specific_position": _keyword_position,
    "keywords:existence": _literal_keywords,
    "keywords:frequency": _literal_frequency,
    "keywords:forbidden_words": _literal_forbidden,
}
