"""Scorers that are not ours, as they run in processes of their own: each a maker of a function and its data's folders.

A maker imports and warms what it needs and returns a function from a request (built by the reward of that name) to
numbers or truth values. Nothing here runs in the training process.

Some of these packages evaluate texts as Python (``eval``, SymPy's ``parse_expr``). That a completion's text can do
no harm there is the cage's promise; that it cannot rewrite its own score is this file's: what is evaluated is checked
to be literals and arithmetic first.
"""

import ast
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from counterpoint.rewards._math_text import is_formula
from counterpoint.rewards.sandbox._scorer_process import Foreign, Scorer

_ARITHMETIC = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp, ast.Load)
_FUNCTIONS = """
sin cos tan sec csc cot asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt cbrt root abs Abs sign floor
ceiling factorial binomial gamma erf max min Max Min Rational Integer Float Integral Derivative
"""
# Comparisons by the algebra system round to six places.
_SMALL = 1e-4
_FAR = 1e-3
_CALL = re.compile(r"([A-Za-z_]\w*)\s*\(")
_NO_EXPRESSION = re.compile(r"""__|['"\\@:;`#]|[)\]}]\s*\(|\blambda\b""")


_WARM_UP = [
    *(
        ("x/2", r"\frac{1}{2}x+1"),
        (r"\sqrt{3}+1", r"\sqrt{2}-1"),
        (r"(1,\infty)", r"[2, \infty)"),
        (r"\{1,2\}", r"\{2,3\}"),
    ),
    *(
        (r"\frac{\pi}{3}", r"\pi/4"),
        ("x^2+2x", "x(x+2)"),
        (r"\sin x", r"\cos(x)"),
        ("x=3", "y=4"),
        (r"\log_2 8", "3^2"),
    ),
    *((r"\frac{\sqrt{7}}{2}", r"x^2+9x+4"), (r"(8,\infty)", r"\frac{5\pi}{9}"), (r"8\sqrt{3}+2", r"\frac{a+b}{c}")),
    *(("2^{10}", "(1,2,3)"), ("[-1,4)", r"\frac{3}{4}x"), (r"-\frac{1}{2}", r"\frac{1}{x+1}"), ("y=2x+3", "e^{2x}")),
    *((r"\sqrt[3]{5}", r"x\in(1,5)"), (r"\ln 2", "3, 5"), ("n(n+1)", "1:2"), (r"\pm 3", r"\{2,9\}")),
    *((r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"), (r"50\%", "0.5"), (r"\text{east}", "A"), ("3 + 4i", "i")),
    *(("10!", r"\binom{5}{2}"), (r"x\ge 2", "x > 3"), ("|x|", "-x"), (r"2\cdot 3", "6,000"), (r"\frac12", "0.3")),
]


def evaluate_literal(text: str, *_: Any) -> Any:
    """What ``eval`` would give for literals and arithmetic on them. Raises ``ValueError`` for anything else."""
    tree = ast.parse(text.strip(), mode="eval")
    for node in ast.walk(tree):
        if not isinstance(node, (*_ARITHMETIC, ast.operator, ast.unaryop)):
            raise ValueError(f"{type(node).__name__} is no literal")
    return eval(compile(tree, "answer", "eval"), {"__builtins__": {}})


def check_expression(text: str) -> None:
    """Raises ``ValueError`` when ``text`` is more than an expression of numbers, symbols and known functions."""
    unknown = [name for name in _CALL.findall(text) if name not in _FUNCTIONS.split()]
    if not text.isascii() or _NO_EXPRESSION.search(text) or unknown:
        raise ValueError("not a mathematical expression")


def _guarded(parse_expr: Callable[..., Any]) -> Callable[..., Any]:
    def parse(text: Any, *args: Any, **kwargs: Any) -> Any:
        check_expression(str(text))
        return parse_expr(str(text), *args, **kwargs)

    return parse


def _make_math() -> Scorer:
    import math_verify.parser
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    from sympy.core.random import seed

    logging.disable(logging.CRITICAL)
    math_verify.parser.parse_expr = _guarded(math_verify.parser.parse_expr)
    targets = [LatexExtractionConfig(), ExprExtractionConfig()]

    def read(text: str, prose: bool) -> list[Any]:
        # As one formula; only prose that is none is searched for formulas, or ``3x`` would hold the answer 3.
        formula = " ".join(text.split()).strip("$ ").rstrip("\\")
        whole = parse(f"${formula}$", targets[:1], parsing_timeout=None)
        if any(not isinstance(value, str) for value in whole):
            return whole
        # The other parser finds a number in whatever it is given: it must have read all of it.
        plain = parse(formula, targets[1:], parsing_timeout=None)
        if plain and _bare(plain[-1]) == _bare(formula):
            return plain
        return parse(text, targets, parsing_timeout=None) if prose else whole

    def same(pair: tuple[str, str, bool]) -> bool:
        gold, answer, prose = pair
        seed(0)  # equality is tried at random points: the same for every pair, whatever came before it
        golds, answers = read(gold, not is_formula(gold)), read(answer, prose)
        numbers = _real_numbers(golds, answers)
        if numbers and _are_far(*numbers):  # most wrong numbers, without any algebra
            return False
        agree = bool(verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None))
        return agree and not (numbers and _differ_in_scale(*numbers))

    for (
        gold,
        answer,
    ) in _WARM_UP:  # fills the parsers' and the algebra's tables once, not in every child: ten times faster
        same((gold, answer, False))
        same((gold, gold, False))
    return same


def _bare(text: Any) -> str:
    return re.sub(r"\\(?:text|mathrm|left|right|approx)(?![A-Za-z])|[\s,.${}%]|\\[,;!: %$]", "", str(text))


def _real_numbers(golds: list[Any], answers: list[Any]) -> tuple[Any, Any] | None:
    """The values of two real numbers to 20 digits; None where either is anything else."""
    import sympy

    pair = [values[0] for values in (golds, answers) if values and isinstance(values[0], sympy.Expr)]
    if len(pair) < 2 or not all(value.is_number for value in pair):
        return None
    gold, answer = (value.evalf(20) for value in pair)
    return (gold, answer) if all(value.is_Float or value.is_zero for value in (gold, answer)) else None


def _are_far(gold: Any, answer: Any) -> bool:
    """Whether two numbers differ by more than any rounding."""
    return bool(abs(gold - answer) > _FAR * max(1, abs(gold), abs(answer)))


def _differ_in_scale(gold: Any, answer: Any) -> bool:
    """Whether two numbers are equal only for being rounded to the same few places, as 1/2004! and 1/2006! are."""
    small, large = sorted((abs(gold), abs(answer)))
    return bool(small < _SMALL and abs(gold - answer) > _SMALL * large)


def _make_instructions() -> Scorer:
    from counterpoint.rewards._checkers import build_checker, isolated, load_checkers

    checkers = load_checkers()

    def follows(request: tuple[list[tuple[str, Mapping[str, Any]]], str | None, list[str]]) -> list[bool]:
        instructions, prompt, variants = request
        with isolated():
            built = [build_checker(checkers, name, kwargs, prompt) for name, kwargs in instructions]
        with isolated():
            return [any(_is_followed(checker, text) for text in variants if text.strip()) for checker in built]

    with isolated():  # reads the profiles of languages once
        follows(([("language:response_language", {"language": "en"})], None, ["This is English text, as it seems."]))
    return follows


def _is_followed(checker: Any, text: str) -> bool:
    try:
        return bool(checker.check_following(text))
    except (ImportError, OSError, MemoryError):
        raise
    except Exception:  # the checkers are not ours; a text that one of them fails on does not follow its instruction
        return False


def _nltk_folders() -> list[str]:
    import nltk

    return list(nltk.data.path)


def _make_reasoning_gym() -> Scorer:
    import sympy
    from reasoning_gym import get_score_answer_fn
    from sympy.parsing import sympy_parser

    logging.disable(logging.CRITICAL)
    original, guarded = sympy_parser.parse_expr, _guarded(sympy_parser.parse_expr)
    sympy.parse_expr = guarded
    for name, module in list(sys.modules.items()):
        if name.startswith("reasoning_gym"):
            module.eval = evaluate_literal  # type: ignore[attr-defined]
            if getattr(module, "parse_expr", None) is original:
                module.parse_expr = guarded  # type: ignore[attr-defined]

    def score(request: tuple[str, str, Mapping[str, Any]]) -> float:
        task, answer, entry = request
        return float(get_score_answer_fn(task)(answer, entry))

    return score


math = Foreign(_make_math, requests=500)
instructions = Foreign(_make_instructions, _nltk_folders)
reasoning_gym = Foreign(_make_reasoning_gym)
