"""Finding the program in a completion."""

import ast
import functools
import re
import textwrap

from counterpoint.rewards._library_names import statements_for
from counterpoint.rewards._regions import answer_region

_OPENING = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)(.*)")
_TAGGED = re.compile(r"^[ \t]*\[(?:PYTHON|BEGIN)\](.*?)(?:\[/PYTHON\]|\[DONE\]|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = {"", "python", "py", "python3", "ipython", "ipython3"}
_NOT_SEEN = str.maketrans({"\u00a0": " ", "\u200b": "", "\u200c": "", "\u2060": ""})
_ONLY_DEFINES = re.compile(r"(?:(?:(?:async\s+def|def|class|import|from)\s|[@#)\]}\s]|[A-Z_][A-Z\d_]*\s*=[^=]).*)?")
_DEFINED = re.compile(r"^(?:async\s+def|def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
_IMPORTED = re.compile(r"^(?:from\s+[\w.]+\s+)?import\s+(.+)$", re.MULTILINE)
_READS = re.compile(r"\binput\(|\bstdin\b|\bopen\(0|\bfileinput\b|\bos\.read\(")
_ACTS = re.compile(r"^(?:assert\b|.*\binput\()", re.MULTILINE)
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]*(?:\([^()]*\)|[^\n;]*);?", re.MULTILINE)
_TYPING = "Any Callable Deque Dict DefaultDict Generator Iterable Iterator List Optional Sequence Set Tuple Union"


def extract_code(text: str, names: list[str], closed_thought: bool = False) -> str:
    """The program in ``text``: the last fenced Python block that defines one of ``names``, else the last Python block.

    Without ``names``, which is a program that reads, the last that reads, else that prints.
    Other blocks that define or import what it uses come before it, later ones only where they do nothing else. Without
    fences it is the whole answer. A fence that is never closed (a truncated reply) reaches to the end.
    """
    text = answer_region(text.replace("\r\n", "\n").replace("\ufeff", ""), closed_thought)
    if re.search(r"^> ?(?:```|~~~)", text, re.MULTILINE):
        text = re.sub(r"^> ?", "", text, flags=re.MULTILINE)
    found = [(language, body) for language, body in _blocks(text) if language.lower() in _PYTHON]
    found = found or [("python", body) for body in _TAGGED.findall(text)]
    if not found:
        return _with_names(text.strip().strip("`") if text.count("`") == 2 else text, names)
    if not names and any(language for language, _ in found):  # a sample of input or output has no language
        found = [(language, body) for language, body in found if language]
    blocks = [body for _, body in found]
    defining = [index for index, block in enumerate(blocks) if any(defines(block, name) for name in names)]
    if not names:
        defining = [index for index, block in enumerate(blocks) if _READS.search(block)]
        defining = defining or [index for index, block in enumerate(blocks) if "print(" in block]
    index = (defining or [len(blocks) - 1])[-1]
    later = [block for block in blocks[index + 1 :] if all(map(_ONLY_DEFINES.fullmatch, block.split("\n")))]
    return _with_names(_with_helpers(blocks[index], [*later, *blocks[:index]]), names)


def _blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text: language and content. A fence may close at the end of a line of code.

    One inside a docstring belongs to it. A block of Markdown is read for its own blocks.
    """
    blocks: list[tuple[str, str]] = []
    marker, language, lines = "", "", list[str]()
    for line in text.split("\n"):
        if not marker:
            opening = _OPENING.match(line)
            if opening is None:
                continue
            marker, language, rest = opening.groups()
            lines = []
            if rest.rstrip().endswith(marker):
                names_it = language.lower() in _PYTHON and re.match(r"\s+[\w@(\[\"'#]", rest)
                body = rest.rstrip()[: -len(marker)]
                blocks.append((language, body.lstrip()) if names_it else ("", language + body))
                marker = ""
        elif (line.lstrip().startswith(marker) or line.rstrip().endswith(marker)) and not _in_docstring(lines):
            before = line.rstrip()[: -len(marker)] if not line.lstrip().startswith(marker) else ""
            body = "\n".join([*lines, before, ""] if before else [*lines, ""])
            blocks += _blocks(body) if language.lower() in ("markdown", "md") else [(language, body)]
            marker = ""
        else:
            lines.append(line)
    return [*blocks, (language, "\n".join(lines))] if marker else blocks


def _in_docstring(lines: list[str]) -> bool:
    code = "\n".join(lines)
    return any(code.count(quotes) % 2 for quotes in ('"""', "'''"))


def _with_helpers(code: str, others: list[str]) -> str:
    """``code`` after those of the other blocks that define or import names which it uses and lacks."""
    for block in reversed(others):
        missing = set(re.findall(r"[A-Za-z_]\w*", code)) - _provided(code)
        if _provided(block) & missing and not _ACTS.search(block):
            code = put_above(block.rstrip("\n") + "\n\n", code)
    return code


def put_above(text: str, code: str) -> str:
    """``text`` and then ``code``, whose ``from __future__`` lines come first of all."""
    first = _FUTURE.findall(code) if text else []
    return "".join(f"{line}\n" for line in first) + text + (_FUTURE.sub("", code) if first else code)


def _provided(code: str) -> set[str]:
    imported = [name for line in _IMPORTED.findall(code) for name in re.findall(r"\w+", line)]
    return {name for pair in _DEFINED.findall(code) for name in pair if name} | set(imported)


def _with_names(code: str, names: list[str]) -> str:
    """``code`` with names that it uses and nothing defines: of ``typing``, and in LeetCode's form of the library."""
    if "Solution" in names or defines(code, "Solution"):
        used = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", code))
    else:
        used = {name for name in _TYPING.split() if re.search(rf"(?<![\w.]){name}\[", code)}
    added = statements_for(used - _provided(code)) if used else ""
    indent = code[: len(code) - len(code.lstrip())].rpartition("\n")[2]
    return put_above(textwrap.indent(added, indent), code)


def defines(code: str, name: str) -> bool:
    """Whether a line of ``code`` defines ``name`` at the top level."""
    return (
        re.search(rf"^(?:async\s+def|def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=", code, re.MULTILINE)
        is not None
    )


def names_called(tests: list[str]) -> list[str]:
    """Names that the tests call, each once, in order."""
    return list(dict.fromkeys(name for test in tests for name in re.findall(r"(?<![\w.])([A-Za-z_]\w*)\s*\(", test)))


@functools.lru_cache(1024)
def helper_code(header: str) -> tuple[str, str]:
    """A header as code that compiles, and the name of the function that it begins (its last one).

    Its imports and helper functions serve the tests as well. A header that does not compile either way gives nothing.
    """
    header = header.rstrip("\n") + "\n"
    for text in (header, header + "    pass\n"):
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        begun = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        return text, begun[-1] if begun else ""
    return "", ""


def sources(code: str, header: str, entry_point: str) -> list[str]:
    """Texts of the program to try, best first: the first that compiles is run.

    With a ``header`` (a function's first lines) the code may be the function's body or the whole function. A header
    with a docstring is a complete function that a later definition replaces, and its imports and helpers are wanted
    either way.
    """
    if not header.strip():
        return list(dict.fromkeys([code, textwrap.dedent(code), code.translate(_NOT_SEEN)]))
    header = header.rstrip("\n") + "\n"
    if defines(code, entry_point) if entry_point else re.search(r"^(?:async\s+)?def\s", code, re.MULTILINE):
        return [put_above(header + "\n\n", code), code]
    body = code.strip("\n")
    return [header + body, header + textwrap.indent(textwrap.dedent(body), "    "), code]
