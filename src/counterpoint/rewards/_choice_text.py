# ruff: noqa: RUF001 (patterns and tables, with the signs that people type)
"""Which of several labelled options a reply chooses, read from its words."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from counterpoint.rewards import _choice_words as words_for
from counterpoint.rewards._cues import ANSWER, announced
from counterpoint.rewards._math_text import boxed

_LETTER = "A-Za-z0-9_\u00c0-\u04ff'’"
_OTHER_SCRIPTS = {"أ": "A", "ا": "A", "ب": "B", "ج": "C", "د": "D", "অ": "A", "ব": "B", "ড": "C", "ঢ": "D"}
_OTHER_SCRIPTS |= {"ক": "A", "খ": "B", "গ": "C", "ঘ": "D"}
_FULL_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}
_CJK = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LATEX_WORD = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mathit|mathsf|mbox|bf|rm)\b\s*")
_SOFT = re.compile(
    r"[\"'`“”‘’„«»()\[\]{}?!;:…¿¡。，、！？；：「」『』（）$~]|(?<!\d)\.|\.(?!\d)|,|(?<![A-Za-z0-9)])[*_]+|[*_]+(?![A-Za-z0-9(])"
)
_ARTICLES = re.compile(r"(?<![\w^+*/=<>-])(?:an?|the)(?=\s+[^\W\d_])")


def plain(text: str) -> str:
    """A text for comparison: letters' case, articles and soft punctuation do not count, signs do."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    text = re.sub(r"(?<=[^\W\d_])['’](?=[^\W\d_])", "", text)
    text = re.sub(r"(?<=[^\W\d_]{2})[-–—](?=[^\W\d_]{2})", " ", text)
    text = _SOFT.sub(" ", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))
    text = re.sub(r"(?<=[\w)])\s+([<>=!]=?|[+*/^≤≥])\s+(?=[\w(-])", r"\1", _ARTICLES.sub(" ", text))
    return " ".join(text.split())


@dataclass(frozen=True)
class _Named:
    """Labels named in one breath (``A, B and D``), and whether they are said to be wrong."""

    labels: tuple[str, ...]
    start: int
    end: int
    rejected: bool


class Choices:
    """The options of a question, and what a reply says about them.

    Arguments:
        options: Label -> text; the texts may be missing.
        labels: All labels.
    """

    def __init__(self, options: Mapping[str, str], labels: Sequence[str]) -> None:
        self._options = options
        self._plain = {label: plain(text) or text.strip() for label, text in options.items()}
        self._spelled = _spellings(labels)
        self._names = _any_of(labels)
        every = _any_of(self._spelled)
        label = rf"({self._names}){self._end}"
        self._alone = re.compile(rf"[\s*_`\"'“”「(\[{{$]*(?:[->]\s+)?[*_(\[]*({every})[\s*_`\"'“”」)\]}}$.:,;!。]*")
        self._called = re.compile(rf"(?i:option|choice|letter)\s+({every})[.!]?")
        self._leading = re.compile(rf"[\s*_`\"'“(\[{{]*(?i:option\s+|choice\s+|letter\s+)?[*_(\[{{]*{label}")
        self._any = re.compile(rf"(?<![{_LETTER}+#\\-]){label}")
        self._first = [
            re.compile(rf"\W*({every})[).:](?:\s|$)"),
            re.compile(rf"\s*\**\(?({self._names})\)?\**\s*(?:[-–—]\s|\n|$)"),
        ]
        self._bracketed = re.compile(rf"[(\[]\s*({every})\s*[)\]]")
        # A line that begins with a label, and one of a word and a label.
        self._lines = [
            re.compile(rf"[\s*_(\[]*({self._names})[*_]*[).:\]]\**(?:\s|$)"),
            re.compile(rf"[\s#*_]*\w+(?<!wrong)(?<!not)[*_]*[:：][\s*_(\[]*({self._names})[\s*_)\].]*$", re.IGNORECASE),
        ]
        self._concluding = [
            re.compile(rf"{words_for.CONCLUSION}{words_for.FILLER}{label}"),
            re.compile(rf"(?<![{_LETTER}])({self._names}){words_for.RIGHT}"),
            re.compile(rf"{words_for.OPTION_IS}{label}(?!\s+(?i:looks))"),
            re.compile(rf"{words_for.ANSWER_LAST}{label}[\s*_)\].!]*$", re.MULTILINE),
            re.compile(rf"(?i:{ANSWER})\s*[(（]\s*({self._names})\s*[)）]"),
            re.compile(rf"(?i:{ANSWER})\s+{label}(?:\s+(?:है|हो|ہے))?[\s*_)\].!।]*$", re.MULTILINE),
        ]

    _end = rf"(?![{_LETTER}+#]|-\w)"

    def stated(self, reply: str, strict: bool) -> str:
        """The label that a reply states or whose text it gives; ``""`` where it states none, or several."""
        text = reply.translate(_FULL_WIDTH).strip()
        whole = self._alone.fullmatch(text)
        if whole:
            return self._spelled[whole[1]]
        if strict:
            return ""
        if called := self._called.fullmatch(text):
            return self._spelled[called[1]]
        *before, corrected = words_for.CORRECTED.split(text)
        if before and (instead := self.stated(corrected, strict)):
            return instead
        if same := self._same(reply.strip()):
            return same
        for place in (self._in_box, self._in_announcement, self._in_last_line, self._in_conclusion):
            found = place(text)
            if found is not None:
                return found
        return self._at_start(text) or self.by_text(text) or self._lone(text)

    def _in_box(self, text: str) -> str | None:
        box = boxed(text)
        return self._of_line(_LATEX_WORD.sub("", box)) if box else None

    def _in_announcement(self, text: str) -> str | None:
        for line in reversed(announced(text)):
            while inner := announced(line):
                line = inner[-1]
            found = self._of_line(line)
            if found is not None:
                return found
        return None

    def _of_line(self, line: str) -> str | None:
        """What a line that should name a label names: one (its label), several (``""``) or none."""
        line = line.strip()
        if whole := self._alone.fullmatch(line):
            return self._spelled[whole[1]]
        if same := self._same(line) or self._same(line.rstrip(".")):
            return same
        match = self._leading.match(line)
        if match and not self._is_word(match, line):
            rest = re.sub(r"^[)\]}*_]+", "", line[match.end() :])
            if rest.startswith("?") and (asked := self._of_line(rest[1:])):
                return asked
            for first in self._named(line)[:1]:
                if first.start == match.start(1) and (len(first.labels) == 1) == first.rejected:
                    return ""
            return match[1]
        sentence = re.split(r"(?<=[.!?])\s|,?\s+(?:but|although|though|whereas|while|because|since)\b", line)[0]
        if match is None or not self.by_text(line):
            left = self._left(sentence)
            if len(left) == 1:
                return left.pop()
        return self.by_text(sentence) or self.by_text(line) or None

    def _same(self, text: str) -> str:
        """The one option whose text is ``text``, sign for sign."""
        same = [label for label, option in self._options.items() if option.strip() == text]
        return same[0] if len(same) == 1 else ""

    def _in_last_line(self, text: str) -> str | None:
        *before, line = re.split(r"\s*\n\s*", text)
        label, form = self._label_of_line(line)
        if not before or form is None:
            return None
        other, other_form = self._label_of_line(before[-1])
        listed_again = form == other_form and other != label and (form == 1 or len(before) > 1)
        return None if listed_again else label

    def _label_of_line(self, line: str) -> tuple[str, int | None]:
        """The label of a line that is no more than a label, begins with one, or is one word and a label."""
        if whole := self._alone.fullmatch(line):
            return self._spelled[whole[1]], 0
        for form, pattern in enumerate(self._lines, 1):
            match = pattern.match(line)
            if match and not _rejected(match):
                return match[1], form
        return "", None

    def _in_conclusion(self, text: str) -> str | None:
        named = self._named(text)
        found = [
            (match.start(1), match[1])
            for pattern in self._concluding
            for match in pattern.finditer(text)
            if any(one.start <= match.start(1) < one.end and len(one.labels) == 1 and not one.rejected for one in named)
        ]
        return max(found)[1] if found else None

    def _at_start(self, text: str) -> str:
        match = next(filter(None, (pattern.match(text) for pattern in self._first)), None)
        if match is None or _rejected(match):
            return ""
        first, *others = re.split(r"\s*\n\s*", text, maxsplit=2)
        if others and self._label_of_line(others[0])[1] == self._label_of_line(first)[1] is not None:
            return ""  # the options, listed once more
        return self._spelled[match[1]]

    def by_text(self, text: str) -> str:
        """The one option whose text stands in ``text``; one inside a longer one that stands there does not count."""
        *before, concluded = words_for.THEREFORE.split(text)
        for part in (*reversed(announced(text)), *([concluded] if before else []), text):
            words = plain(part)
            present = [label for label, option in self._plain.items() if option and _chosen(option, words)]
            longest = [
                label
                for label in present
                if not any(
                    self._plain[label] != self._plain[other] and _stands_in(self._plain[label], self._plain[other])
                    for other in present
                )
            ]
            if longest and len({self._options[label].strip().casefold() for label in longest}) == 1:
                return longest[0]
        return ""

    def _named(self, text: str) -> list[_Named]:
        """The labels that stand alone in ``text``, those of a list together."""
        groups: list[list[re.Match[str]]] = []
        for match in self._any.finditer(text):
            if self._is_word(match, text):
                continue
            between = text[groups[-1][-1].end() : match.start()] if groups else None
            if between is not None and len(between) <= words_for.LONGEST_LISTED and words_for.LISTED.fullmatch(between):
                groups[-1].append(match)
            else:
                groups.append([match])
        return [
            _Named(
                tuple(dict.fromkeys(match[1] for match in group)),
                group[0].start(),
                group[-1].end(),
                _rejected(group[0], group[-1]),
            )
            for group in groups
        ]

    def _left(self, text: str) -> set[str]:
        """Labels that stand alone in ``text`` and are not, where they stand last, said to be wrong."""
        rejected = {label: named.rejected for named in self._named(text) for label in named.labels}
        return {label for label, wrong in rejected.items() if not wrong}

    def _lone(self, text: str) -> str:
        """The one label that stands alone in ``text``, in brackets or as a capital, and is not said to be wrong."""
        matches = list(self._bracketed.finditer(text))
        if matches and len(named := {self._spelled[match[1]] for match in matches}) == 1:
            return "" if any(map(_rejected, matches)) else named.pop()
        left = self._left(text)
        return left.pop() if len(left) == 1 else ""

    def _is_word(self, match: re.Match[str], text: str) -> bool:
        """Whether ``A`` or ``I`` is the article or the pronoun."""
        if match[1] == "I" and re.match(r"\s+(?:would|must|should|was)\b", text[match.end(1) :]):
            return True
        return match[1] in ("A", "I") and bool(
            re.match(rf"\s+(?!(?:{words_for.AFTER_LABEL})\b)[a-z]|['’]", text[match.end(1) :])
        )


def _stands_in(option: str, words: str) -> bool:
    return option in words if _CJK.search(option) else f" {option} " in f" {words} "


def _rejected(first: re.Match[str], last: re.Match[str] | None = None) -> bool:
    """Whether what was found, up to ``last``, is said to be wrong, by words before it or after it."""
    text, start, end = first.string, first.start(1), (last or first).end(1)
    before = words_for.BEFORE_REJECTED.search(text, max(0, start - 60), start)
    return bool(before or words_for.AFTER_REJECTED.match(text, end))


def _chosen(option: str, words: str) -> bool:
    """Whether an option's text stands in ``words`` and is not said to be wrong where it stands last."""
    if not _stands_in(option, words):
        return False
    before, _, after = words.rpartition(option)
    return not words_for.TEXT_BEFORE_REJECTED.search(before) and not words_for.TEXT_AFTER_REJECTED.match(after)


def _spellings(labels: Sequence[str]) -> dict[str, str]:
    """Every way to write a label -> the label. Not `re.IGNORECASE`, which takes a dotless i for an I."""
    spelled = {label: label for label in labels}
    for label in labels:
        spelled.setdefault(label.lower(), label)
        spelled.setdefault(label.upper(), label)
    for letter, label in _OTHER_SCRIPTS.items():
        if label in spelled:
            spelled.setdefault(letter, label)
    return spelled


def _any_of(names: Iterable[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
