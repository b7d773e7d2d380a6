"""Errors of the program: as data on its side, as errors again on the tests' side.

An error travels as the names of its class and of that class's bases, its arguments and its text. The tests' side raises
the first of these classes that it knows. No name makes it import anything.
"""

import builtins
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

_TEXT = 1000
# Of the standard library, where the tests have imported it. Never unittest.SkipTest, which would skip the tests.
_KNOWN = {
    *("_csv.Error", "_queue.Empty", "binascii.Error", "configparser.Error", "dataclasses.FrozenInstanceError"),
    *("decimal.DivisionByZero", "decimal.InvalidOperation", "json.decoder.JSONDecodeError", "queue.Full"),
    *("re.PatternError", "re.error", "statistics.StatisticsError", "struct.error"),
}


class ProgramError(Exception):
    """An exception of the program of which no class is known."""


def write_error(error: BaseException, write: Callable[[Any], Any]) -> list[Any]:
    """Names of classes, nearest first, arguments and text of an error."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, BaseException)]
    names = [kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}" for kind in kinds]
    text, args = "", []
    with contextlib.suppress(Exception):  # the program's own ``__str__``
        text = str(error)[:_TEXT]
    with contextlib.suppress(Exception):
        # An operating system's error has its file beside its arguments.
        held = OSError.__reduce__(error)[1] if isinstance(error, OSError) else error.args
        args = [write(arg) for arg in held]
    return [names, args, text]


def built_error(names: Sequence[str], args: Sequence[Any], text: str, ends: bool) -> Exception:
    """The error to raise for one of the program.

    Arguments:
        names: Of its class and that class's bases, nearest first.
        args: Its arguments.
        text: What it says.
        ends: Whether it may be the end of an iteration.
    """
    for name in names:
        kind = _known(name)
        if kind is not None and (ends or not issubclass(kind, StopIteration | StopAsyncIteration)):
            return _built(kind, args, text)
    return ProgramError(f"{names[0] if names else 'an error'}: {text}")


def _known(name: str) -> type[Exception] | None:
    module, _, short = name.rpartition(".")
    if module and name not in _KNOWN:
        return None
    kind = getattr(sys.modules.get(module) if module else builtins, short, None)
    # A group needs errors to be built from.
    good = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, ExceptionGroup)
    return kind if good else None


def _built(kind: type[Exception], args: Sequence[Any], text: str) -> Exception:
    if not issubclass(kind, UnicodeError):  # arguments that lie about lengths would be believed
        for held in (args, (text,)):
            with contextlib.suppress(Exception):
                error = kind(*held)
                if held is not args or str(error)[:_TEXT] == text:
                    return error
    return kind.__new__(kind, text)
