"""Tests as inputs and outputs, in the forms of APPS, TACO, LiveCodeBench and KlearReasoner-CodeSub.

{"input_output": '{"inputs": ["1 2"], "outputs": ["3"]}'}                      a program that reads and writes
{"input_output": '{"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}'}   a function, or Solution's method
"""

import base64
import binascii
import contextlib
import json
import pickletools
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from counterpoint.errors import RewardError
from counterpoint.rewards._base import Row, shorten
from counterpoint.rewards.sandbox import MAX_FRAME

COLUMNS = (
    *("input_output", "public_test_cases", "private_test_cases", "metadata", "reward_model", "ground_truth"),
    *("inputs", "outputs", "fn_name"),
)
_MOST_TEXT = 1 << 28  # bytes of a compressed column's text
_TEXT_ONLY = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}


@dataclass(frozen=True)
class IoTests:
    """Tests of a program that reads and writes, or of a function.

    Attributes:
        function: The function, or method of ``Solution``, that is called; empty where the program reads.
        tests: A JSON text each: the input and the output, or the arguments and the results of which any is right.
    """

    function: str
    tests: tuple[str, ...]


def io_tests(row: Row) -> IoTests | str | None:
    """The row's tests where they are inputs and outputs, or the text of tests that stands in their place.

    None where the tests are in other columns.

    Raises:
        RewardError: They cannot be used.
    """
    held = {column: _loaded(value, column) for column, value in _found(row)}
    if not held:
        return None
    first = next(iter(held.values()))
    if isinstance(first, Mapping) and (text := first.get("functional") or first.get("pytest")):
        return str(text)
    function = row.get("fn_name") or _name_in(row.get("metadata"))
    pairs = list[tuple[Any, Any]]()
    for column, value in held.items():
        more, name = _pairs(value, column, function)
        pairs += more
        function = function or name
    if not pairs:
        raise RewardError(f"{next(iter(held))!r} holds no test.")
    if not isinstance(function, str) or (function and not function.isidentifier()):
        raise RewardError(f"'fn_name' must be the name of a function, found {shorten(function)}.")
    if not function:
        return IoTests("", tuple(_checked(_texts(pair), index) for index, pair in enumerate(pairs)))
    calls = [_call(pair, index) for index, pair in enumerate(pairs)]
    # APPS and TACO wrap each result in a list.
    wrapped = all(isinstance(result, list) and len(result) == 1 for _, result in calls)
    tests = [[arguments, [result, *(result if wrapped else [])]] for arguments, result in calls]
    return IoTests(function, tuple(_checked(test, index) for index, test in enumerate(tests)))


def _found(row: Row) -> Iterable[tuple[str, Any]]:
    """The columns that hold such tests, each with its value."""
    tests = row.get("tests")
    as_text = isinstance(tests, str) and tests.lstrip()[:1] in ("{", "[")
    if as_text or isinstance(tests, Mapping) or (_is_list(tests) and tests and isinstance(tests[0], Mapping)):
        return [("tests", tests)]
    if tests is not None or row.get("test_list") is not None or row.get("test") is not None:
        return []
    if row.get("inputs") is not None and row.get("outputs") is not None:
        return [("inputs", {"inputs": row["inputs"], "outputs": row["outputs"]})]
    for column in ("input_output", "ground_truth"):
        if row.get(column) is not None:
            return [(column, row[column])]
    if row.get("reward_model") is not None:
        held = row["reward_model"]
        return [("reward_model", held.get("ground_truth") if isinstance(held, Mapping) else held)]
    return [(name, row[name]) for name in ("public_test_cases", "private_test_cases") if row.get(name) is not None]


def _pairs(value: Any, column: str, function: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Inputs with their outputs, and the function's name where the value holds one."""
    name: Any = ""
    if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
        inputs, outputs = value["inputs"], value["outputs"]
        name = value.get("fn_name") or ""
    elif _is_list(value) and all(isinstance(case, Mapping) and {"input", "output"} <= case.keys() for case in value):
        inputs, outputs = [case["input"] for case in value], [case["output"] for case in value]
        for case in value:
            name = name or case.get("fn_name") or _name_in(case.get("metadata"))
        if not (name or function) and any(case.get("testtype") == "functional" for case in value):
            raise RewardError(
                f"{column!r} tests a function; give its name in 'fn_name', or as 'func_name' in 'metadata'."
            )
    else:
        raise RewardError(
            f"{column!r} must hold 'inputs' and 'outputs', or a list of {{'input', 'output'}}, found {shorten(value)}."
        )
    if not _is_list(inputs) or not _is_list(outputs) or len(inputs) != len(outputs):
        raise RewardError(f"{column!r} must hold as many inputs as outputs, in lists, found {shorten(value)}.")
    return list(zip(inputs, outputs, strict=True)), name


def _name_in(metadata: Any) -> Any:
    """The function's name in a column that may hold anything else."""
    with contextlib.suppress(RewardError):
        metadata = _loaded(metadata, "metadata")
    return (metadata.get("func_name") or "") if isinstance(metadata, Mapping) else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _loaded(value: Any, column: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if column == "private_test_cases" and (text := _unpacked(value)):
            return _loaded(text, column + ", unpacked,")
        packed = " Of LiveCodeBench's packed form only a single text is read." if "private" in column else ""
        raise RewardError(f"{column!r} is no JSON ({error}): {shorten(value)}.{packed}") from None


def _unpacked(value: str) -> str:
    """The text in LiveCodeBench's packed form (base64, zlib, pickle); empty where it holds anything but one text.

    The pickle is read as a list of operations and never run.
    """
    try:
        pickled = zlib.decompressobj().decompress(base64.b64decode(value, validate=True), _MOST_TEXT)
        operations = [(code.name, argument) for code, argument, _ in pickletools.genops(pickled)]
    except (binascii.Error, zlib.error, ValueError):
        return ""
    texts = [argument for name, argument in operations if name not in _TEXT_ONLY]
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else ""


def _texts(pair: tuple[Any, Any]) -> list[str]:
    """Input and output as texts; a list holds lines."""
    found = []
    for side in pair:
        lines = list(side) if _is_list(side) else [side]
        if not all(isinstance(line, str | int | float) for line in lines):
            raise RewardError(
                f"an input or output of a program that reads must be a text, found {shorten(side)}; tests of a "
                "function need its name in 'fn_name'."
            )
        found.append("\n".join(map(str, lines)))
    return found


def _call(pair: tuple[Any, Any], index: int) -> tuple[list[Any], Any]:
    """Arguments and result. A text holds JSON, an argument a line."""
    arguments, result = pair
    if isinstance(arguments, str):
        try:
            arguments = [json.loads(line) for line in arguments.split("\n") if line.strip()]
            result = json.loads(result) if isinstance(result, str) else result
        except (ValueError, RecursionError) as error:
            raise RewardError(f"test {index} holds no JSON ({error}): {shorten(pair)}.") from None
    if not _is_list(arguments):
        raise RewardError(f"the input of test {index} must be a list of arguments, found {shorten(arguments)}.")
    return list(arguments), result


def _checked(test: list[Any], index: int) -> str:
    try:
        text = json.dumps(test)
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardError(f"test {index} is no JSON ({error}).") from None
    if 2 * len(text) > MAX_FRAME:  # a backslash takes two characters when it is sent
        raise RewardError(f"test {index} is too large: {len(text):,} characters of JSON, at most {MAX_FRAME // 2:,}.")
    return text
