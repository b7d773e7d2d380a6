"""A reward is a user's program: whatever it raises or returns becomes numbers, or a ``RewardError`` that says where."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from types import TracebackType
from typing import Any

from counterpoint.errors import MissingExtraError, RewardError
from counterpoint.rewards._base import is_failed, shorten

__all__ = ["FAILED_MARK", "LARGEST_PART", "Blame", "numbers_of", "shorten", "words_of"]

LARGEST_FLOAT32 = 3.4028234663852886e38

FAILED_MARK = float("inf")
"""``FAILED`` among checked numbers: in a tensor of rewards NaN is ``None`` already, and infinity is no reward."""

LARGEST_PART = 1e18
"""Of a reward times its weight: the squares of larger ones leave float32, and a whole domain would learn nothing."""


class Blame(AbstractContextManager[None]):
    """Turns whatever a user's program raises into a ``RewardError`` that says where; only Ctrl-C goes through.

    Also ``SystemExit``: a reward that calls ``sys.exit`` must not end training as if it were done.
    """

    def __init__(self, where: str, about: str) -> None:
        self._where, self._about = where, about

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        meant = isinstance(error, RewardError | MissingExtraError | KeyboardInterrupt)
        if error is not None and not meant and not _is_cancelled(error):
            raise RewardError(f"{self._where} raised {words_of(error)}{self._about}") from error


def _is_cancelled(error: BaseException) -> bool:
    """Whether the loop that awaits a reward is being ended, which the reward has not caused."""
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        return False
    return task is not None and task.cancelling() > 0


def words_of(error: BaseException) -> str:
    """``ValueError: its text``, also of an error that cannot be shown."""
    try:
        text = str(error)
    except Exception:  # whatever a user's class does
        text = "(a text that cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def numbers_of(values: Any, count: int, where: str, text_of: Callable[[int], str]) -> list[float | None]:
    """What a reward returned for ``count`` completions as numbers; None where it does not apply, ``FAILED_MARK`` where
    it failed.

    Args:
        values: a list, a tuple, or an array or tensor of one dimension.
        count: the completions.
        where: the reward, for messages.
        text_of: names a completion, for messages.

    Raises:
        RewardError: anything that is not one finite number in float32, or None, per completion.
    """
    if inspect.iscoroutine(values):
        values.close()
    is_text = isinstance(values, str | bytes | bytearray | memoryview)
    is_array = hasattr(values, "tolist") and getattr(values, "ndim", None) == 1
    listed = values.tolist() if is_array else values
    if is_text or not isinstance(listed, Sequence):
        raise RewardError(
            f"{where} returned a {type(values).__name__} for {count} completions: {shorten(values)}. "
            "Return a list with one number per completion."
        )
    if len(listed) != count:
        raise RewardError(
            f"{where} returned {len(listed)} values for {count} completions. Return one number per completion."
        )
    return [_number(value, where, text_of, index) for index, value in enumerate(listed)]


def _is_in_float32(number: Any) -> bool:
    """Without converting it, for that fails for large whole numbers. NaN is in no range."""
    return bool(-LARGEST_FLOAT32 <= number <= LARGEST_FLOAT32)


def _number(value: Any, where: str, text_of: Callable[[int], str], index: int) -> float | None:
    number = value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
    if number is None:
        return None
    if is_failed(number):
        return FAILED_MARK
    if not isinstance(number, Real) or not _is_in_float32(number):
        raise RewardError(
            f"{where} returned {shorten(value)} for {text_of(index)}. Return a finite number (in float32), or None to "
            "leave the completion out."
        )
    return float(number)
