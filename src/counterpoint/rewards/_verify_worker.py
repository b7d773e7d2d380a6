"""The worker process of ``_verify_pool``: reads ``[reference, answer]`` lines, writes ``true`` or ``false`` lines."""

import json
import logging
import os
import resource
import sys
import warnings
from collections.abc import Callable
from typing import Any

# Expressions are written by a model: one that would fill the machine's memory must end its worker instead.
_MEMORY_BYTES = 4 << 30


def main() -> None:
    # The protocol keeps its own copy of standard output: a library that prints must not break it.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    same = _comparison()
    same("\\frac{1}{2}", "1/2")  # builds the parsers' tables now, not within the first pair's time
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        gold, answer = json.loads(line)
        answers.write(b"true\n" if same(gold, answer) else b"false\n")
        answers.flush()


def _comparison() -> Callable[[str, str], bool]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    targets = [LatexExtractionConfig(), ExprExtractionConfig()]

    def read(text: str) -> list[Any]:
        # As one formula; only prose that is none is searched for formulas, or ``3x`` would hold the answer 3.
        whole = parse(f"${text.strip('$ ')}$", targets, parsing_timeout=None)
        return whole or parse(text, targets, parsing_timeout=None)

    def same(gold: str, answer: str) -> bool:
        try:
            return bool(verify(read(gold), read(answer), timeout_seconds=None))
        except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError):
            return False  # an answer that the algebra system cannot read equals nothing
        except NotImplementedError:
            return False

    return same
