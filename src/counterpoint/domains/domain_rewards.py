"""One reward function of one domain, as TRL sees it: scores its own domain's rows, ``None`` for all others."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from trl.trainer.utils import is_async_callable

from counterpoint.errors import RewardError
from counterpoint.rewards.values import Blame, numbers_of, shorten

RewardFunction = Callable[..., Any]
DomainRewards = Mapping[str, RewardFunction | Sequence[RewardFunction] | Mapping[str, RewardFunction]]
"""Domain -> one function, several, or several by the name they have in the metrics."""

_PER_ROW = ("prompts", "completions", "completion_ids")


def reward_name(function: RewardFunction) -> str:
    """The name of a reward function in logs: its ``__name__``, else its class's."""
    return getattr(function, "__name__", type(function).__name__)


def build_domain_rewards(rewards: DomainRewards, domains: Sequence[str]) -> list["RewardFunction"]:
    """TRL reward functions for a mapping from domain to one or several functions.

    Raises:
        RewardError: a domain has no reward, a reward names no domain, or one is not a function.
    """
    if missing := [name for name in domains if name not in rewards]:
        raise RewardError(
            f"reward_funcs: no reward for domain {missing[0]!r}. Give every domain of {list(domains)} one."
        )
    if unknown := [name for name in rewards if name not in domains]:
        raise RewardError(f"reward_funcs: {unknown[0]!r} is no domain of the data. The data has {list(domains)}.")
    return [_wrap(domain, name, function) for domain in domains for name, function in _named(rewards[domain])]


def _named(entry: Any) -> list[tuple[str, RewardFunction]]:
    if isinstance(entry, Mapping):
        return list(entry.items())
    functions = entry if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]
    return [(reward_name(function), function) for function in functions]


def _wrap(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    if not callable(function) or hasattr(function, "parameters"):
        raise RewardError(
            f"reward_funcs[{domain!r}]: a domain's reward must be a function, found {type(function).__name__}. "
            "Wrap a reward model in a function that returns one number per completion."
        )
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    reward = _async_reward(domain, name, function) if is_async else _sync_reward(domain, name, function)
    reward.__name__ = f"{domain}/{name}"
    return reward


def _blame(domain: str, name: str, culprit: str) -> Blame:
    about = f", for {culprit}. Mend the function or the row; nothing was trained on it."
    return Blame(f"domain {domain!r}: reward {name!r}", about)


def _sync_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    def reward(**arguments: Any) -> list[float | None]:
        rows, own = _own_rows(domain, arguments)
        if not rows:
            return [None] * len(arguments["prompts"])
        try:
            with _blame(domain, name, f"its {len(rows)} completions together"):
                values = function(**own)
        except RewardError:
            _score_one_by_one(domain, name, function, own)
            raise
        with _blame(domain, name, "what it returned"):
            return _scatter(domain, name, rows, own, values, len(arguments["prompts"]))

    return reward


def _score_one_by_one(domain: str, name: str, function: RewardFunction, own: Mapping[str, Any]) -> None:
    """Raises the error of the first row that fails alone, naming that row."""
    num_rows = len(own["prompts"])
    for i in range(num_rows):
        single = {k: [v[i]] if _is_per_row(k, v, num_rows) else v for k, v in own.items() if k != "log_extra"}
        single |= {"log_extra": lambda column, values: None} if "log_extra" in own else {}
        with _blame(domain, name, _row_text(own, i)):
            function(**single)


def _async_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    async def reward(**arguments: Any) -> list[float | None]:
        rows, own = _own_rows(domain, arguments)
        if not rows:
            return [None] * len(arguments["prompts"])
        with _blame(domain, name, f"its {len(rows)} completions together"):
            values = await function(**own)
            return _scatter(domain, name, rows, own, values, len(arguments["prompts"]))

    return reward


def _is_per_row(key: str, value: Any, num_rows: int) -> bool:
    return key in _PER_ROW or (isinstance(value, list) and len(value) == num_rows)


def _own_rows(domain: str, arguments: Mapping[str, Any]) -> tuple[list[int], dict[str, Any]]:
    num_rows = len(arguments["prompts"])
    rows = [i for i, name in enumerate(arguments["domain"]) if name == domain]
    own: dict[str, Any] = {}
    for key, value in arguments.items():
        own[key] = [value[i] for i in rows] if _is_per_row(key, value, num_rows) else value
    if "log_extra" in arguments:
        own["log_extra"] = _scattered_log_extra(domain, rows, num_rows, arguments["log_extra"])
    return rows, own


def _scattered_log_extra(
    domain: str, rows: list[int], num_rows: int, log_extra: Callable[[str, list[Any]], None]
) -> Callable[[str, list[Any]], None]:
    def log(column: str, values: list[Any]) -> None:
        full: list[Any] = [None] * num_rows
        for i, value in zip(rows, values, strict=True):
            full[i] = value
        log_extra(f"{domain}/{column}", full)

    return log


def _scatter(
    domain: str, name: str, rows: list[int], own: Mapping[str, Any], values: Any, num_rows: int
) -> list[float | None]:
    full: list[float | None] = [None] * num_rows
    where = f"domain {domain!r}: reward {name!r}"
    for row, value in zip(rows, numbers_of(values, len(rows), where, lambda i: _row_text(own, i)), strict=True):
        full[row] = value
    return full


def _row_text(own: Mapping[str, Any], position: int) -> str:
    row = own["row"][position] if "row" in own else position
    return f"row {row} (prompt {_clip(own['prompts'][position])}, completion {_clip(own['completions'][position])})"


def _clip(value: Any) -> str:
    return shorten(value, 160)


class SharedErrors:
    """Keeps the first ``RewardError`` of this rank until all ranks have called their rewards."""

    def __init__(self) -> None:
        self._error: RewardError | None = None

    def hold(self, functions: Any) -> Any:
        """The same reward functions, whose errors wait for :meth:`raise_together`."""
        if not isinstance(functions, list):
            return functions
        return [self._async(f) if is_async_callable(f) else self._sync(f) for f in functions]

    def _sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reward(**arguments: Any) -> list[float | None]:
            try:
                return function(**arguments)
            except RewardError as error:
                return self._nothing(error, arguments)

        return reward

    def _async(self, function: Callable[..., Any]) -> Callable[..., Any]:
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
