"""One reward function of one domain, as TRL sees it: scores its own domain's rows, ``None`` for all others."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Real
from types import TracebackType
from typing import Any

from counterpoint.errors import RewardError

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


class _Blame(AbstractContextManager[None]):
    """Turns whatever a user's reward function raises into a ``RewardError`` that says where."""

    def __init__(self, domain: str, name: str, culprit: str) -> None:
        self._where = f"domain {domain!r}: reward {name!r}"
        self._culprit = culprit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RewardError):
            raise RewardError(
                f"{self._where} raised {type(error).__name__}: {error}, for {self._culprit}. "
                "Mend the function or the row; nothing was trained on it."
            ) from error


def _sync_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    def reward(**arguments: Any) -> list[float | None]:
        rows, own = _own_rows(domain, arguments)
        if not rows:
            return [None] * len(arguments["prompts"])
        try:
            with _Blame(domain, name, f"its {len(rows)} completions together"):
                values = function(**own)
        except RewardError:
            _score_one_by_one(domain, name, function, own)
            raise
        return _scatter(domain, name, rows, own, values, len(arguments["prompts"]))

    return reward


def _score_one_by_one(domain: str, name: str, function: RewardFunction, own: Mapping[str, Any]) -> None:
    """Raises the error of the first row that fails alone, naming that row."""
    num_rows = len(own["prompts"])
    for i in range(num_rows):
        single = {k: [v[i]] if _is_per_row(k, v, num_rows) else v for k, v in own.items() if k != "log_extra"}
        single |= {"log_extra": lambda column, values: None} if "log_extra" in own else {}
        with _Blame(domain, name, _row_text(own, i)):
            function(**single)


def _async_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    async def reward(**arguments: Any) -> list[float | None]:
        rows, own = _own_rows(domain, arguments)
        if not rows:
            return [None] * len(arguments["prompts"])
        with _Blame(domain, name, f"its {len(rows)} completions together"):
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
    where = f"domain {domain!r}: reward {name!r}"
    if not hasattr(values, "__len__") or len(values) != len(rows):
        found = f"{len(values)} values" if hasattr(values, "__len__") else f"a {type(values).__name__}"
        raise RewardError(f"{where} returned {found} for {len(rows)} completions. Return one number per completion.")
    full: list[float | None] = [None] * num_rows
    for position, (row, value) in enumerate(zip(rows, values, strict=True)):
        full[row] = _checked(where, own, position, value)
    return full


def _checked(where: str, own: Mapping[str, Any], position: int, value: Any) -> float | None:
    if value is None:
        return None
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, Real) or not math.isfinite(float(number)):
        raise RewardError(
            f"{where} returned {value!r} for {_row_text(own, position)}. Return a finite number, or None to leave the "
            "completion out."
        )
    return float(number)


def _row_text(own: Mapping[str, Any], position: int) -> str:
    row = own["row"][position] if "row" in own else position
    return f"row {row} (prompt {_clip(own['prompts'][position])}, completion {_clip(own['completions'][position])})"


def _clip(value: Any, limit: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."
