"""What tests use most of pytest, for the tests' side, where no package is: raises, approx, parametrize, fail."""

import contextlib
import functools
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

PARTS = {"approx", "fail", "main", "mark", "param", "raises"}
"""Names that tests may use; ``main`` where it is not run."""


class _Failed(BaseException):
    """As pytest's, no ``Exception``: a test's own ``except Exception`` does not hide it."""


class _Param(tuple[Any, ...]):
    """One row of parameters."""


class _Approx:
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None) -> None:
        default = 1e-6 if abs is None else 0.0
        self._expected, self._rel, self._abs = expected, default if rel is None else rel, 1e-12 if abs is None else abs

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"

    def __eq__(self, actual: object) -> bool:
        return self._near(actual, self._expected)

    def _near(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict) and isinstance(actual, dict):
            return actual.keys() == expected.keys() and all(self._near(actual[key], expected[key]) for key in expected)
        if isinstance(expected, list | tuple) and isinstance(actual, list | tuple):
            return len(actual) == len(expected) and all(map(self._near, actual, expected))
        if not all(isinstance(value, int | float | complex | Decimal | Fraction) for value in (actual, expected)):
            return bool(actual == expected)
        actual, expected = (float(value) if isinstance(value, Decimal) else value for value in (actual, expected))
        near = math.isfinite(abs(expected)) and abs(actual - expected) <= max(self._rel * abs(expected), self._abs)
        return bool(actual == expected or near)


class _Raised:
    value: BaseException
    type: type[BaseException]

    def match(self, pattern: str) -> bool:
        assert re.search(pattern, str(self.value)), f"{pattern!r} is not in {str(self.value)!r}"
        return True


def _raises(kinds: Any, *call: Any, match: str | None = None, **kwargs: Any) -> Any:
    if not call:
        return _expecting(kinds, match)
    with _expecting(kinds, match) as raised:
        call[0](*call[1:], **kwargs)
    return raised


@contextlib.contextmanager
def _expecting(kinds: Any, match: str | None) -> Iterator[_Raised]:
    raised = _Raised()
    try:
        yield raised
    except kinds as error:
        raised.value, raised.type = error, type(error)
        if match is not None:
            raised.match(match)
    else:
        raise _Failed(f"{kinds} was not raised")


def _fail(reason: str = "") -> NoReturn:
    raise _Failed(reason)


def _param(*values: Any, **_: Any) -> _Param:
    return _Param(values)


def _parametrize(argnames: str | Sequence[str], argvalues: Any, **_: Any) -> Callable[..., Any]:
    names = [name.strip() for name in argnames.split(",") if name.strip()] if isinstance(argnames, str) else argnames
    alone = len(names) == 1 and isinstance(argnames, str)
    rows = [row if isinstance(row, _Param) or not alone else (row,) for row in argvalues]

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            assert rows, "a test without parameters does not run"
            for row in rows:
                test(*args, **kwargs, **dict(zip(names, row, strict=True)))

        return run

    return decorate


def install() -> None:
    """Makes it what ``import pytest`` finds in this process."""
    mark = types.SimpleNamespace(parametrize=_parametrize)
    module = types.ModuleType("pytest")
    vars(module).update(approx=_Approx, fail=_fail, mark=mark, param=_param, raises=_raises)
    sys.modules["pytest"] = module
