# ruff: noqa: E501, RUF001 (patterns and tables, with the signs that people type)
"""Which of several labelled options a reply chooses, read from its words."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from counterpoint.rewards._cues import announced
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
# Words that may follow the label A or I and do not make it a word.
_AFTER = "or|and|because|since|as|is|was|for|which|with|due|given|by|it|we|from|seems|looks|would|must|should|but"
_LISTED = r"\s*(?:[,/&、]|,?\s*(?:or|and|oder|und|ou|et|o|y|и|или|和|或|と)(?![A-Za-z])|[,，]?\s*(?:or|and)\s)\s*(?:or\s+)?(?:maybe\s+|perhaps\s+|possibly\s+)?"
_CONCLUSION = (
    r"(?i:\b(?:therefore|thus|hence|so|consequently|choose|select|pick|chose|selected|say|guess|go\s+with|leaving|leaves|correct|"
    r"right|best|conclude|it\s+is|it's|must\s+be|seems\s+to\s+be)\b|选择|選擇|选|選|应选|正确|[→⇒]|=>)"
)
_FILLER = r"(?:[\s,:*_(\[]|(?i:option|choice|answer|the|that|is|it|must|be|one|to|only|remaining|with|as)\b|的是|是)*"
_REJECTED_BEFORE = r"(?i:\b(?:(?:(?:can|could|must|may|wo|should|would)(?:n['’]t|['’]t|\s*not)|not)\s+be|anything\s+but|not|never|neither|nor|except|without|rules?\s+out|excludes?|eliminates?|eliminating|reject|isn't|nicht|than)\s+(?:option\s+|choice\s+)?)[(\[*]*"
_REJECTED_AFTER = r"[)\]*]*\s+(?i:is|are|was|looks|seems|fails|cannot|can't|isn't)(?:\s+(?i:wrong|false|incorrect|tempting|out|not|eliminated|ruled|impossible|invalid)\b|(?<=fails)|(?<=cannot)|(?<=can't)|(?<=isn't))"
_RIGHT = r"[)\]*]*\s+(?i:is|must\s+be)\s+(?:the\s+)?(?i:correct|right|true|best|only|answer)\b"


def plain(text: str) -> str:
    """A text for comparison: letters' case, articles and soft punctuation do not count, signs do."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").casefold()
    text = re.sub(r"(?<=[^\W\d_])['’](?=[^\W\d_])", "", text)
    text = re.sub(r"(?<=[^\W\d_]{2})[-–—](?=[^\W\d_]{2})", " ", text)
    text = _SOFT.sub(" ", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text))
    text = re.sub(r"(?<=[\w)])\s+([<>=!]=?|[+*/^≤≥])\s+(?=[\w(-])", r"\1", _ARTICLES.sub(" ", text))
    return " ".join(text.split())


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
        self._alone = re.compile(rf"[\s*_`\"'“”「(\[{{$]*(?:[->]\s+)?[*_(\[]*({every})[\s*_`\"'“”」)\]}}$.:,;!。]*")
        self._leading = re.compile(
            rf"[\s*_`\"'“(\[{{]*(?i:option\s+|choice\s+|letter\s+)?[*_(\[{{]*({self._names}){self._end}"
        )
        self._any = re.compile(rf"(?<![{_LETTER}+#\\-])({self._names}){self._end}")

    _end = rf"(?![{_LETTER}+#]|-\w)"

    def stated(self, reply: str, strict: bool) -> str:
        """The label that a reply states or whose text it gives; ``""`` where it states none, or several."""
        text = reply.translate(_FULL_WIDTH).strip()
        whole = self._alone.fullmatch(text)
        if whole:
            return self._spelled[whole[1]]
        if strict:
            return ""
        same = [label for label, option in self._options.items() if option.strip() == reply.strip()]
        if len(same) == 1:
            return same[0]
        for found in (
            self._in_box(text),
            self._in_announcement(text),
            self._in_last_line(text),
            self._in_conclusion(text),
        ):
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
        whole = self._alone.fullmatch(line.strip())
        if whole:
            return self._spelled[whole[1]]
        match = self._leading.match(line)
        if match and not self._is_word(match, line):
            rest = re.sub(r"^[)\]}*_]+", "", line[match.end() :])
            if rest.startswith("?") and (asked := self._of_line(rest[1:])):
                return asked
            if re.match(
                rf"{_LISTED}[*_(\[]*(?i:option\s+)?(?:{self._names}){self._end}(?!['’]|\s+(?i:is|was)\s+(?i:wrong|false|incorrect))",
                rest,
            ):
                return ""
            return match[1]
        if match is None or not self.by_text(line):
            left = self._not_rejected(re.split(r"(?<=[.!?])\s", line.strip())[0])
            if len(left) == 1:
                return left.pop()
        return self.by_text(line) or None

    def _in_last_line(self, text: str) -> str | None:
        line = text.rpartition("\n")[2]
        if line == text:
            return None
        whole = self._alone.fullmatch(line)
        if whole:
            return self._spelled[whole[1]]
        match = re.match(rf"[\s*_(\[]*({self._names})[*_]*[).:\]]\**(?:\s|$)", line)
        match = match or re.fullmatch(
            rf"[\s#*_]*\w+(?<!wrong)(?<!not)[*_]*[:：][\s*_(\[]*({self._names})[\s*_)\].]*", line, re.I
        )
        return match[1] if match else None

    def _in_conclusion(self, text: str) -> str | None:
        found = [
            (match.start(1), match[1])
            for pattern in (
                rf"{_CONCLUSION}{_FILLER}({self._names}){self._end}",
                rf"(?<![{_LETTER}])({self._names}){_RIGHT}",
                rf"(?i:option|choice)(?i:\s+is|\s*:)*\s*[*_(\[]*({self._names}){self._end}(?!{_REJECTED_AFTER}|\s+(?i:looks))",
            )
            for match in re.finditer(pattern, text)
            if not self._is_word(match, text)
            and not re.match(_REJECTED_AFTER, text[match.end(1) :])
            and not re.match(rf"{_LISTED}[*_(\[]*(?:{self._names}){self._end}", text[match.end(1) :])
        ]
        return max(found)[1] if found else None

    def _at_start(self, text: str) -> str:
        match = re.match(rf"\W*({_any_of(self._spelled)})[).:](?:\s|$)", text)
        if match:
            return self._spelled[match[1]]
        match = re.match(rf"\s*\**\(?({self._names})\)?\**\s*(?:[-–—]\s|\n|$)", text)
        return match[1] if match else ""

    def by_text(self, text: str) -> str:
        """The one option whose text stands in ``text``; one inside a longer one that stands there does not count."""
        for part in (*reversed(announced(text)), text):
            words = plain(part)
            present = [label for label, option in self._plain.items() if option and _stands_in(option, words)]
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

    def _not_rejected(self, text: str) -> set[str]:
        """Labels that stand alone in ``text`` and are not said to be wrong."""
        return {
            match[1]
            for match in self._any.finditer(text)
            if not self._is_word(match, text)
            and not re.search(_REJECTED_BEFORE + "$", text[: match.start()])
            and not re.match(_REJECTED_AFTER, text[match.end() :])
        }

    def _lone(self, text: str) -> str:
        """The one label that stands alone in ``text``, in brackets or as a capital."""
        every = _any_of(self._spelled)
        matches = list(re.finditer(rf"[(\[]\s*({every})\s*[)\]]", text))
        if matches:
            named = {self._spelled[match[1]] for match in matches}
            rejected = any(re.search(_REJECTED_BEFORE + "$", text[: match.start()]) for match in matches)
            return named.pop() if len(named) == 1 and not rejected else ""
        named = {match[1] for match in self._any.finditer(text) if not self._is_word(match, text)}
        return named.pop() if len(named) == 1 and named == self._not_rejected(text) else ""

    def _is_word(self, match: re.Match[str], text: str) -> bool:
        """Whether ``A`` or ``I`` is the article or the pronoun."""
        if match[1] == "I" and re.match(r"\s+(?:would|must|should|was)\b", text[match.end(1) :]):
            return True
        return match[1] in ("A", "I") and bool(re.match(rf"\s+(?!(?:{_AFTER})\b)[a-z]|['’]", text[match.end(1) :]))


def _stands_in(option: str, words: str) -> bool:
    return option in words if _CJK.search(option) else f" {option} " in f" {words} "


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
