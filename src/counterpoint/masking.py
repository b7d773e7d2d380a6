"""Secrets: the names that hold them, and texts and data without them.

What a configuration takes from the environment is remembered here, in this process alone, and ``masked`` puts the
variable back in its place. Everything that is printed, and every text that is written beside the numbers of a run, goes
through it.

>>> remember("sk-12345678", "OPENAI_API_KEY")
>>> masked("Wrong key: sk-12345678")
'Wrong key: ${OPENAI_API_KEY}'
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO
from urllib.parse import quote

MASK = "***"

_ANYWHERE = {"secret", "secrets", "password", "passwords", "passwd", "pwd", "passphrase", "passcode", "credential"}
_ANYWHERE |= {"credentials", "authorization", "apikey", "apikeys"}
_AT_THE_END = {"key", "token"}
_SEVERAL = {"keys", "tokens"}  # of these only where the word before says which
_OF_ACCESS = {"api", "access", "auth", "secret", "private", "hub", "hf", "bearer", "session", "refresh"}
_HARMLESS = {"pad", "eos", "bos", "unk", "mask", "sep", "cls", "stop", "start", "end", "begin", "special", "image"}
_HARMLESS |= {"answer", "sort", "group", "public", "primary", "foreign", "json", "label", "row", "column"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SHORTEST = 8
_SHORTEST_SECRET = 4
_NAMED = re.compile(
    r"""([\w-]*[A-Za-z])(["']?[ \t]*[:=][ \t]*)("[^"]*"|'[^']*'|[\[{].*"""
    r"""|(?:\$\{[^}]*\}|[^\s,}\]"'])(?:\$\{[^}]*\}|[^,}\]])*)"""
)

_LINE = re.compile(r"""(\s*(?:- +)*["']?)([\w-]+)(["']?[ \t]*:)(.*)""")
_PLAIN = re.compile(r"\s*([-+.\d]+|true|false|null|~|(?!.*\$\{\w+:-).*\$\{\w+\}.*)?\s*", re.IGNORECASE)

_known: dict[str, str] = {}
_pattern: re.Pattern[str] | None = None


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is taken for a secret: ``api_key``, ``hubToken``, not ``max_tokens``.

    A word ``secret``, ``password``, ``credential`` or the like stands anywhere in it, or it ends in ``key`` or
    ``token``, but for those that are none: ``answer_key``, ``eos_token``.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if any(word in _ANYWHERE for word in words):
        return True
    before = words[-2] if len(words) > 1 else ""
    return bool(words) and (
        (words[-1] in _AT_THE_END and before not in _HARMLESS) or (words[-1] in _SEVERAL and before in _OF_ACCESS)
    )


def remember(value: str, variable: str, *, secret: bool = False) -> None:
    """Keep ``value`` out of everything that is shown: ``${variable}`` stands for it.

    Values of fewer than 8 characters are left, for they are also parts of other words; of secrets (a variable or a key
    with the name of one) those of fewer than 4.
    """
    global _pattern
    shortest = _SHORTEST_SECRET if secret or is_secret_name(variable) else _SHORTEST
    found = {form: f"${{{variable}}}" for form in _forms(value) if len(form) >= shortest and form not in _known}
    if found:
        _known.update(found)
        longest_first = sorted(_known, key=len, reverse=True)
        _pattern = re.compile("|".join(map(_as_found, longest_first)))


def _as_found(form: str) -> str:
    """The pattern of a value; a short one must stand by itself, for it may be a part of a word."""
    return re.escape(form) if len(form) >= _SHORTEST else rf"(?<!\w){re.escape(form)}(?!\w)"


def _forms(value: str) -> Iterator[str]:
    """The value as it may stand in a text: by itself, line by line, in quotes, in JSON, in an address."""
    for part in (value, value.strip(), *(line.strip() for line in value.splitlines())):
        yield part
        yield from (repr(part)[1:-1], json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
        yield quote(part.encode(errors="surrogatepass"), safe="")


def masked(text: str) -> str:
    """``text`` with the variables' names in place of their values."""
    return text if _pattern is None else _pattern.sub(lambda match: _known[match[0]], text)


def masked_data(data: Any) -> Any:
    """Plain ``data`` with every text masked, and those under a secret's name altogether."""
    if isinstance(data, str):
        return masked(data)
    if isinstance(data, dict):
        return {key: _hidden(item) if is_secret_name(str(key)) else masked_data(item) for key, item in data.items()}
    return type(data)(map(masked_data, data)) if type(data) in (list, tuple) else data


def _hidden(data: Any) -> Any:
    """All texts of ``data`` replaced, but for those that name a variable."""
    if isinstance(data, str):
        shown = masked(data)
        return shown if not data or "${" in shown else MASK
    if isinstance(data, dict):
        return {key: _hidden(item) for key, item in data.items()}
    return type(data)(map(_hidden, data)) if type(data) in (list, tuple) else data


def masked_names(text: str) -> str:
    """YAML or ``name=value``, masked, and without the values of secrets' names."""
    lines: list[str] = []
    hidden: int | None = None  # column of a secret's name whose value may go on below
    for line in masked(text).split("\n"):
        column = len(line) - len(line.lstrip())
        below = not line.strip() or column > (hidden or 0) or (column == hidden and line.lstrip().startswith("- "))
        if hidden is not None and below:
            continue
        found = _LINE.match(line)
        if found and is_secret_name(found[2]) and (not found[4].strip() or not _PLAIN.fullmatch(found[4])):
            hidden = len(found[1].rstrip("\"'"))
            lines.append(f"{found[1]}{found[2]}{found[3]} {MASK}")
        else:
            hidden = None
            lines.append(_NAMED.sub(_hide, line))
    return "\n".join(lines)


def _hide(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    if is_secret_name(name) and not _PLAIN.fullmatch(value):
        return f"{name}{between}{MASK}"
    return f"{name}{between}{_NAMED.sub(_hide, value)}" if value[0] in "[{" else match[0]


class MaskedStream:
    """An open text stream to which everything is written masked."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes ``text`` without secrets."""
        return self._stream.write(masked(text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes them one after another."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def masked_command(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: those of ``--api-key VALUE`` and those of ``--set training.key=VALUE``."""
    shown: list[str] = []
    before = ""
    for argument in arguments:
        hide = before.startswith("-") and "=" not in before and is_secret_name(before) and not argument.startswith("-")
        shown.append(MASK if hide else masked_names(argument))
        before = argument
    return shown
