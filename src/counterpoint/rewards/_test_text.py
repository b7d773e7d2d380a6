"""Tests in the forms of data sets as texts that the sandbox runs: functions that pytest finds, classes of unittest.

A text that only defines tests would pass by doing nothing, so their calls are added to it; what runs nothing even then
is refused.
"""

import ast
import builtins
import functools
import re
import sys

from counterpoint.errors import RewardError

_MODULE = "solution"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Pass)
_RUN_CASE = """
__result__ = __import__("unittest").TestResult()
__import__("unittest").defaultTestLoader.loadTestsFromTestCase({name}).run(__result__)
assert __result__.testsRun > len(__result__.skipped), "no test of {name} ran"
assert __result__.wasSuccessful(), [text for _, text in __result__.failures + __result__.errors]
"""


@functools.lru_cache(4096)
def runnable(source: str, what: str = "a test") -> str:
    """A test's text with calls of the tests that it defines, and with the program's names in place of its module.

    Arguments:
        source: A text that compiles.
        what: How an error calls it.

    Raises:
        RewardError: It would run nothing.
    """
    tree = ast.parse(source)
    if any(_imports_solution(node) for node in ast.walk(tree)):
        tree = ast.fix_missing_locations(_WithoutModule().visit(tree))
        source = ast.unparse(tree)
    if any(_starts_tests(node) for node in tree.body):  # which would end the process before it has said anything
        tree.body = [node for node in tree.body if not _starts_tests(node)]
        source = ast.unparse(tree)
    calls = [call for node in tree.body for call in _calls(node, _called(tree))]
    if not calls and all(_runs_nothing(node) for node in tree.body):
        raise RewardError(
            f"{what} runs nothing: it defines no function named test_..., no class of tests and asserts nothing, so "
            "that every program would pass. Add the calls."
        )
    return "\n".join([source, *calls])


@functools.lru_cache(4096)
def asserts_something(source: str, asked: tuple[str, ...]) -> bool:
    """Whether a text asserts, raises, or calls what may do so: a test of nothing is passed by all programs.

    Arguments:
        source: A text that compiles.
        asked: Names of the program. Calling them, a function's parameter or a builtin asserts nothing.
    """
    tree = ast.parse(source)
    parameters = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} - {"self"}
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    mute = {*asked, *parameters, *defined, *dir(builtins)} - {"exit", "quit"}
    return any(_asserts(node, mute) for node in ast.walk(tree))


def _asserts(node: ast.AST, mute: set[str]) -> bool:
    if isinstance(node, ast.Assert):
        return not isinstance(node.test, ast.Tuple) and not (isinstance(node.test, ast.Constant) and node.test.value)
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Raise)
    first, *rest = ast.unparse(node.func).removeprefix("pytest.").split(".")
    if first in ("approx", "mark", "param"):
        return False
    if rest and first in sys.stdlib_module_names:
        return rest[-1] == "exit" or "assert" in rest[-1]
    return first not in mute


def defines_function(source: str, name: str) -> bool:
    """Whether a text defines a function of that name."""
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in ast.parse(source).body)


def _called(tree: ast.Module) -> set[str]:
    """Names that the text's own statements use, outside of definitions."""
    outside = [node for node in tree.body if not _runs_nothing(node)]
    return {part.id for node in outside for part in ast.walk(node) if isinstance(part, ast.Name)}


def _calls(node: ast.stmt, called: set[str]) -> list[str]:
    name = getattr(node, "name", "")
    if isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
        return [_RUN_CASE.format(name=name)]  # also where the text runs it, for that may pass over its result
    if name in called:
        return []
    if isinstance(node, ast.FunctionDef) and name.startswith("test"):
        _check_arguments(node, [argument.arg for argument in node.args.args])
        return [f"{name}()"]
    if isinstance(node, ast.AsyncFunctionDef) and name.startswith("test"):
        raise RewardError(f"the test {name!r} is asynchronous, and the sandbox cannot await the program.")
    if not isinstance(node, ast.ClassDef) or not name.startswith("Test"):
        return []
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    before = "".join(f"__it__.{method}(); " for method in ("setup_method", "setUp") if method in methods)
    tests = [method for method in methods if method.startswith("test")]
    for method in tests:
        _check_arguments(methods[method], [argument.arg for argument in methods[method].args.args[1:]])
    return [f"__it__ = {name}(); {before}__it__.{method}()" for method in tests]


def _check_arguments(function: ast.FunctionDef, arguments: list[str]) -> None:
    needed = arguments[: len(arguments) - len(function.args.defaults)]
    given = [_parameters(decorator) for decorator in function.decorator_list]
    if not all(given) or not {*needed} <= {name for names in given for name in names}:
        raise RewardError(
            f"the test {function.name!r} has arguments or a decorator that the sandbox does not know; of pytest's it "
            "knows parametrize, with its names written out. Write it as a function without them."
        )


def _parameters(decorator: ast.expr) -> list[str]:
    """Names that a ``parametrize`` gives; none for any other decorator."""
    if not isinstance(decorator, ast.Call) or not ast.unparse(decorator.func).endswith("mark.parametrize"):
        return []
    names = [*decorator.args, *(keyword.value for keyword in decorator.keywords if keyword.arg == "argnames")][0:1]
    return re.findall(
        r"\w+", " ".join(str(part.value) for part in ast.walk(names[0]) if isinstance(part, ast.Constant))
    )


def _runs_nothing(node: ast.stmt) -> bool:
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    guarded = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
    simple = isinstance(node, ast.Assign | ast.AnnAssign) and not any(isinstance(p, ast.Call) for p in ast.walk(node))
    return isinstance(node, _DEFINITIONS) or constant or guarded or simple


def _starts_tests(node: ast.stmt) -> bool:
    """Whether a statement is ``unittest.main()`` or pytest's."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) in ("unittest.main", "pytest.main")


def _imports_solution(node: ast.AST) -> bool:
    return (isinstance(node, ast.ImportFrom) and node.module == _MODULE) or (
        isinstance(node, ast.Import) and any(alias.name == _MODULE for alias in node.names)
    )


class _WithoutModule(ast.NodeTransformer):
    """``from solution import f`` names what the program defines, which the sandbox gives to the tests anyway."""

    def __init__(self) -> None:
        self._names = {_MODULE}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.stmt]:
        if node.module != _MODULE:
            return node
        renamed = [alias for alias in node.names if alias.asname and alias.asname != alias.name]
        statements = [ast.parse(f"{alias.asname} = {alias.name}").body[0] for alias in renamed]
        return statements or [ast.Pass()]

    def visit_Import(self, node: ast.Import) -> ast.AST:
        self._names |= {alias.asname for alias in node.names if alias.name == _MODULE and alias.asname}
        node.names = [alias for alias in node.names if alias.name != _MODULE]
        return node if node.names else ast.Pass()

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self._names:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)
