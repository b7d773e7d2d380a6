"""Reward ``code``: whether a program passes its tests, run in the sandbox.

    {"prompt": "Write a function that doubles.", "tests": ["assert double(2) == 4", "assert double(-1) == -2"]}
    completion "```python\\ndef double(x):\\n    return 2 * x\\n```"    1.0

HumanEval's form is understood as well: ``test`` defines ``check(candidate)`` and ``entry_point`` names the function.
And so are inputs with outputs, of programs and of functions: see ``_io_tests``.
"""

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Reward, Row, message_text, shorten
from counterpoint.rewards._code_text import extract_code, helper_code, names_called, put_above, sources
from counterpoint.rewards._io_tests import COLUMNS, IoTests, io_tests
from counterpoint.rewards._test_text import asserts_something, defines_function, runnable
from counterpoint.rewards.sandbox import Limits, Program, Sandbox
from counterpoint.rewards.sandbox._tests import read_tests

_MAX_TEXT = 800_000  # characters, of which three versions fit in a frame; no program of a test is longer


class CodeReward(Reward):
    """1 when the program passes all tests of its row, else 0.

    Arguments:
        fraction: Gives the share of tests passed instead.
        prepend_prompt: Takes the prompt that TRL passes as the beginning of the program (completion-style prompts). The
            columns ``header`` and ``prompt`` are taken so wherever they are passed.
        cpu_seconds: Processor time of a program; where tests are inputs and outputs, for each of them.
        wall_seconds: Time until a program is killed, likewise.
        total_seconds: Time for all tests of a program that are inputs and outputs; what is left fails.
        memory_megabytes: Memory of a program, and of its tests.
        threads: Threads of a program.
        file_megabytes: Size of a file that a program writes, its output included.
        workers: Programs at a time; 0 means one per processor.
        closed_thought: A completion without ``</think>`` scores 0.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    optional_columns: ClassVar[tuple[str, ...]] = (
        *("tests", "test_list", "test", "entry_point"),
        *("header", "prompt", "setup", "test_setup_code", "test_imports"),
        *COLUMNS,
    )

    def __init__(
        self,
        fraction: bool = False,
        prepend_prompt: bool = False,
        cpu_seconds: int = 4,
        wall_seconds: float = 8.0,
        total_seconds: float = 60.0,
        memory_megabytes: int = 512,
        threads: int = 16,
        file_megabytes: int = 8,
        workers: int = 0,
        closed_thought: bool = False,
    ) -> None:
        self.__name__ = "code"
        self.closed_thought = closed_thought
        self.fraction = fraction
        self.prepend_prompt = prepend_prompt
        limits = Limits(cpu_seconds, wall_seconds, memory_megabytes, threads, file_megabytes)
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise RewardError(f"workers must be a whole number from 0, found {workers!r}.")
        if isinstance(total_seconds, bool) or not isinstance(total_seconds, int | float) or not total_seconds > 0:
            raise RewardError(f"total_seconds must be a number above 0, found {total_seconds!r}.")
        self.sandbox = Sandbox(limits, workers, total_seconds, whole=fraction)

    def prepare(self, row: Row) -> dict[str, Any]:
        """The row's tests, set-up, header and entry point, each checked."""
        found = io_tests(row)
        if isinstance(found, str):
            row = {**row, "tests": [found], "prompt": None}
        elif found is not None:
            before = _text(row, "setup")
            _check_compiles(before, "the set-up")
            return {"io": found, "before": before}
        entry_point = _text(row, "entry_point")
        tests = _tests(row, entry_point)
        imports = row.get("test_imports") or []
        setup = "\n".join([*imports, _text(row, "test_setup_code")])
        before = _text(row, "setup")
        for number, source in enumerate([*tests, setup, before]):
            _check_compiles(source, f"test {number}" if number < len(tests) else "the set-up")
        tests = [runnable(test, f"test {number}") for number, test in enumerate(tests)]
        header = _text(row, "header") or _text(row, "prompt")
        helpers, stub = helper_code(header)
        helpers = f"{before}\n{helpers}"
        asked = entry_point or stub
        use = read_tests(tuple(tests), setup, helpers, asked)
        if use.problems:
            raise RewardError(f"the sandbox cannot run these tests: {'; '.join(use.problems)}.")
        if not any(asserts_something(source, use.names) for source in (*tests, setup)):
            raise RewardError(f"the tests assert nothing, so that every program would pass: {shorten(tests[0])}.")
        parts = {"tests": tests, "setup": setup, "before": before, "header": header, "entry_point": entry_point}
        return parts | {"helpers": helpers, "asked": asked}

    def check_rows(self, rows: Sequence[Row]) -> list[str]:
        """Problems of the rows that would stop training later. ``RewardError`` where no sandbox can be had for them."""
        problems = super().check_rows(rows)
        if rows and not problems:
            self.sandbox.start()
        return problems

    def score_all(self, texts: Sequence[str], prepared: Sequence[dict[str, Any]]) -> list[float | None]:
        """The rewards of many programs, several at a time."""
        programs = {
            i: _program(text, row, self.closed_thought)
            for i, (text, row) in enumerate(zip(texts, prepared, strict=True))
            if text.strip() and len(text) <= _MAX_TEXT
        }
        verdicts = dict(zip(programs, self.sandbox.run_all(programs.values()), strict=True))
        return [self._reward(verdicts[index].passed) if index in verdicts else 0.0 for index in range(len(texts))]

    def _reward(self, passed: tuple[bool, ...]) -> float:
        return sum(passed) / len(passed) if self.fraction else float(all(passed))

    def _rows(self, count: int, prompts: Sequence[Any] | None, columns: Any) -> list[dict[str, Any]]:
        rows = super()._rows(count, prompts, columns)
        if self.prepend_prompt and prompts is not None:
            for row, prompt in zip(rows, prompts, strict=True):
                row.setdefault("prompt", prompt if isinstance(prompt, str) else message_text(prompt[-1]))
        return rows


def _program(text: str, row: dict[str, Any], closed_thought: bool) -> Program:
    before = row["before"] + "\n" if row["before"] else ""
    if "io" in row:
        io: IoTests = row["io"]
        code = extract_code(text, [io.function, "Solution"] if io.function else [], closed_thought)
        versions = [put_above(before, version) for version in sources(code, "", "")]
        return Program(versions, io.tests, entry_point=io.function, kind="calls" if io.function else "reads")
    names = [row["entry_point"]] if row["entry_point"] else names_called(row["tests"])
    candidates = sources(extract_code(text, names, closed_thought), row["header"], row["entry_point"])
    return Program(
        [put_above(before, source) for source in candidates],
        tuple(row["tests"]),
        row["setup"],
        row["helpers"],
        row["asked"],
    )


def _tests(row: Row, entry_point: str) -> list[str]:
    tests = row.get("tests") if row.get("tests") is not None else row.get("test_list")
    if tests is not None:
        if isinstance(tests, str) or not isinstance(tests, list | tuple) or not tests:
            raise RewardError(f"'tests' must be a list of assert lines, found {shorten(tests)}.")
        for test in tests:
            if not isinstance(test, str) or not test.strip():
                raise RewardError(f"'tests' must hold texts, found {shorten(test)}.")
        return [textwrap.dedent(test.replace("\r\n", "\n")).strip() for test in tests]
    if not _text(row, "test") or not entry_point:
        present = ", ".join(sorted(row)) or "no columns"
        raise RewardError(
            f"reward 'code' needs the column 'tests', or 'test' and 'entry_point', or 'input_output'; the row has "
            f"{present}."
        )
    test = _text(row, "test")
    _check_compiles(test, "'test'")
    return [f"{test}\n\ncheck({entry_point})\n" if defines_function(test, "check") else test]


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RewardError(f"{column!r} must be a text, found {shorten(value)}.")
    return value.replace("\r\n", "\n")


def _check_compiles(source: str, what: str) -> None:
    # The tests are data that the user chose, so compiling them here is safe; what a model writes is compiled in the
    # sandbox.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(source, "tests.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise RewardError(f"{what} is no Python ({error}): {shorten(source)}.") from None
