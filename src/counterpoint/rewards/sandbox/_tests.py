"""What tests use, read from their text: names of the program, modules, and what cannot cross to the program.

Decided here, before a program is seen, so that no program has a say in it.
"""

import ast
import builtins
import functools
import importlib
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from counterpoint.rewards.sandbox._pytest import PARTS

# Modules that tests may use without importing them, as data sets' tests do.
_KNOWN_MODULES = """
bisect cmath collections copy datetime decimal fractions functools heapq inspect io itertools json math operator os
random re statistics string sys textwrap time types typing unittest
"""
_BUILTINS = frozenset(dir(builtins))
_ELSEWHERE = {"np", "numpy", "pd", "pandas", "plt", "scipy", "torch"}
_IN_VAIN = {"redirect_stdout", "redirect_stderr", "mock", "unittest.mock", "patch", "capsys", "monkeypatch"}


@dataclass(frozen=True)
class TestsUse:
    """What tests use.

    Attributes:
        names: Names that the program must define, sorted.
        modules: Modules of the standard library to have at hand, sorted.
        problems: What the sandbox cannot do for these tests, a sentence each.
    """

    names: tuple[str, ...]
    modules: tuple[str, ...]
    problems: tuple[str, ...]


@functools.lru_cache(4096)
def read_tests(tests: tuple[str, ...], setup: str = "", helpers: str = "", entry_point: str = "") -> TestsUse:
    """What ``tests`` use, and ``setup``, which runs before them.

    Arguments:
        tests: Texts that compile.
        setup: A text that compiles.
        helpers: The row's own code on the tests' side; what it defines is not asked of the program.
        entry_point: A name that is asked of the program although ``helpers`` define it or it is a builtin's.
    """
    trees = [tree for tree in map(_parsed, [setup, *tests]) if tree]
    used, defined = _globals([setup, *tests])
    _, helped = _globals([helpers])
    free = sorted(used - defined - (helped - {entry_point}))
    modules = tuple(name for name in free if _is_module(name, trees))
    names = [name for name in free if name not in modules and (name not in _BUILTINS or name == entry_point)]
    problems: list[str] = []
    if not names:  # tests that use no name but builtins test the one builtin's name that they call
        called = [name for name in free if callable(getattr(builtins, name, None)) and not name[0].isupper()]
        names, problems = (called, []) if len(called) == 1 else ([], [_doubt(called)])
    trees += [tree for tree in [_parsed(helpers)] if tree]
    problems += [f"they use {name}, and the sandbox has the standard library only" for name in _ELSEWHERE & set(names)]
    problems += [problem for tree in trees for problem in _problems(tree, set(names))]
    return TestsUse(tuple(names), modules, tuple(dict.fromkeys(problems)))


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError):  # it is reported when it is run
        return None


def _globals(sources: Sequence[str]) -> tuple[set[str], set[str]]:
    """Global names that texts read, and those that they set."""
    used: set[str] = set()
    defined: set[str] = set()
    for source in sources:
        try:
            pending = [symtable.symtable(source, "tests.py", "exec")]
        except (SyntaxError, ValueError):
            continue
        while pending:
            table = pending.pop()
            pending += table.get_children()
            top = table.get_type() == "module"
            for symbol in table.get_symbols():
                if top and (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()):
                    defined.add(symbol.get_name())
                elif symbol.is_referenced() and (top or symbol.is_global()):
                    used.add(symbol.get_name())
    return used, defined


def _is_module(name: str, trees: Sequence[ast.AST]) -> bool:
    if name not in _KNOWN_MODULES.split():
        return False
    module = importlib.import_module(name)
    uses = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    attributes = [
        node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    ]
    return len(uses) == len(attributes) and all(hasattr(module, node.attr) for node in attributes)


def _doubt(called: list[str]) -> str:
    if called:
        return f"the tests call {', '.join(called)} and nothing else; name the tested function in 'entry_point'"
    return "the tests use nothing of the program"


def _problems(tree: ast.Module, names: set[str]) -> Iterator[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    local = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # HumanEval's ``check(candidate)`` calls the program through a parameter.
    tested = names | {argument.arg for function in functions for argument in function.args.args}
    own = {
        alias.asname or alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    for node in ast.walk(tree):
        for module in _imported(node):
            if module not in sys.stdlib_module_names and module != "pytest":
                yield f"they import {module}, and the sandbox has the standard library only"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in tested:
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            if any(_is_code(value, local) for value in values):
                yield f"they pass a function or generator to {node.func.id}; only plain values can be passed"
        for part in _parts_of_pytest(node):
            yield f"they use pytest.{part}, and the sandbox has {', '.join(sorted(PARTS - {'main'}))} only"
        if found := _captured(node, own):
            yield f"they use {found}, which reaches their own process and not the program's"
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("inspect.") and _named(node.args) & names:
            yield f"they inspect {', '.join(sorted(_named(node.args) & names))}, which is in another process"
        if _is_run_of_coroutine(node):
            yield "they run a coroutine of the program"
        for name in sorted(_classes_needed(node) & names):
            yield f"they use {name} as a class on their own side (except, isinstance or a base class)"
        if isinstance(node, ast.Await):
            yield "they await the program"


def _captured(node: ast.AST, modules: set[str]) -> str:
    """What a test would capture or replace in vain, as it is named; ``modules`` are its imported ones."""
    fields = ("id", "attr", "module", *(["name"] if isinstance(node, ast.alias) else []))
    if found := {getattr(node, field, None) for field in fields} & _IN_VAIN:
        return str(found.pop())
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        owner = ast.unparse(node.value)
        return ast.unparse(node) if owner in {"sys", "builtins", "os.environ"} | modules else ""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr" and _named(node.args[:1]) & modules:
        return ast.unparse(node)
    return ""


def _parts_of_pytest(node: ast.AST) -> list[str]:
    """Parts of pytest that the sandbox does not have."""
    if isinstance(node, ast.ImportFrom) and node.module == "pytest":
        return [alias.name for alias in node.names if alias.name not in PARTS]
    if isinstance(node, ast.Import):
        return [f"* as {alias.asname}" for alias in node.names if alias.name == "pytest" and alias.asname]
    owner = ast.unparse(node.value) if isinstance(node, ast.Attribute) else ""
    if owner not in ("pytest", "pytest.mark") or not isinstance(node, ast.Attribute):
        return []
    known = PARTS if owner == "pytest" else {"parametrize"}
    return [] if node.attr in known else [f"{owner}.{node.attr}".removeprefix("pytest.")]


def _named(values: Sequence[ast.AST]) -> set[str]:
    return {part.id for value in values for part in ast.walk(value) if isinstance(part, ast.Name)}


def _is_run_of_coroutine(node: ast.AST) -> bool:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return called.startswith("asyncio.") or called.endswith(".run_until_complete")


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(node.module or "").partition(".")[0]]
    return []


def _is_code(value: ast.expr, local: set[str]) -> bool:
    return isinstance(value, ast.Lambda | ast.GeneratorExp) or (isinstance(value, ast.Name) and value.id in local)


def _classes_needed(node: ast.AST) -> set[str]:
    found: Sequence[ast.expr | None] = []
    if isinstance(node, ast.ExceptHandler):
        found = [node.type]
    elif isinstance(node, ast.ClassDef):
        found = [*node.bases]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in ("isinstance", "issubclass", "assertIsInstance", "assertNotIsInstance"):
            found = node.args[1:2]
        elif called in ("raises", "assertRaises", "assertRaisesRegex"):
            found = node.args[:1]
    return _named([item for item in found if item])
