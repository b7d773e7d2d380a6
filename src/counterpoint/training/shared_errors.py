"""A reward that fails on one rank stops all of them with its message, instead of leaving the others waiting."""

import functools
from collections.abc import Callable
from typing import Any

from accelerate.utils import gather_object
from trl.trainer.utils import is_async_callable

from counterpoint.errors import RewardError

RewardFunction = Callable[..., Any]


class SharedErrors:
    """Keeps the first ``RewardError`` of this rank until all ranks have called their rewards."""

    def __init__(self) -> None:
        self._error: RewardError | None = None

    def hold(self, functions: Any) -> Any:
        """The same reward functions, whose errors wait for :meth:`raise_together`."""
        if not isinstance(functions, list):
            return functions
        return [self._async(f) if is_async_callable(f) else self._sync(f) for f in functions]

    def _sync(self, function: RewardFunction) -> RewardFunction:
        @functools.wraps(function)
        def reward(**arguments: Any) -> list[float | None]:
            try:
                return function(**arguments)
            except RewardError as error:
                return self._nothing(error, arguments)

        return reward

    def _async(self, function: RewardFunction) -> RewardFunction:
        @functools.wraps(function)
        async def reward(**arguments: Any) -> list[float | None]:
            try:
                return await function(**arguments)
            except RewardError as error:
                return self._nothing(error, arguments)

        return reward

    def _nothing(self, error: RewardError, arguments: dict[str, Any]) -> list[float | None]:
        self._error = self._error or error
        return [None] * len(arguments["prompts"])

    def raise_together(self, accelerator: Any) -> None:
        """Raises, on every rank, the error of the first rank that has one.

        Raises:
            RewardError: some rank's reward function failed.
        """
        if accelerator.num_processes == 1:
            return
        own, self._error = self._error, None
        for message in gather_object([None if own is None else str(own)]):
            if message is not None:
                raise RewardError(message) from own
