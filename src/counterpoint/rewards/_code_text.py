"""Finding the program in a completion."""

import ast
import functools
import re
import textwrap

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = {"", "python", "py", "python3"}


def extract_code(text: str, names: list[str]) -> str:
    """The program in ``text``: the last fenced Python block that defines one of ``names``, else the last Python block.

    Without fences it is the whole text. A fence that is never closed (a truncated reply) reaches to the end.
    """
    text = text.replace("\r\n", "\n")
    _, thought, answer = text.rpartition("</think>")
    blocks = [body for language, body in _FENCE.findall(answer if thought else text) if language.lower() in _PYTHON]
    if not blocks:
        return answer if thought else text
    defining = [block for block in blocks if any(defines(block, name) for name in names)]
    return (defining or blocks)[-1]


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
        return [code, textwrap.dedent(code)]
    header = header.rstrip("\n") + "\n"
    if defines(code, entry_point) if entry_point else re.search(r"^(?:async\s+)?def\s", code, re.MULTILINE):
        return [header + "\n\n" + code, code]
    body = code.strip("\n")
    return [header + body, header + textwrap.indent(textwrap.dedent(body), "    "), code]
