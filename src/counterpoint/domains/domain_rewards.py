"""One reward function of one domain, as TRL sees it: scores its own domain's rows, ``None`` for all others."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.errors import RewardError
from counterpoint.rewards.values import Blame, numbers_of, shorten

RewardFunction = Callable[..., Any]
RewardSource = Any
"""A reward function, or what else TRL takes for one: the id of a reward model, or the model itself."""

DomainRewards = Mapping[str, RewardSource | Sequence[RewardSource] | Mapping[str, RewardSource]]
"""Domain -> one reward, several, or several by the name they have in the metrics."""

DOMAIN_COLUMN = "counterpoint_domain"
"""Argument of these functions: the domain of every completion. Not handed on, so that columns keep their names."""

ROW_COLUMN = "counterpoint_row"
"""Argument of these functions: the place of every completion's row in its domain, for messages. Not handed on."""

_PER_ROW = ("prompts", "completions", "completion_ids")


def reward_name(reward: RewardSource) -> str:
    """The name of a reward in logs: its ``__name__``, the last part of a model's id, else its class's."""
    model_id = reward if isinstance(reward, str) else getattr(getattr(reward, "config", None), "_name_or_path", "")
    if model_id:
        return str(model_id).rstrip("/").split("/")[-1]
    return str(getattr(reward, "__name__", type(reward).__name__))


def is_function(reward: RewardSource) -> bool:
    """Whether a reward is called, and is no model that TRL runs."""
    return callable(reward) and not hasattr(reward, "parameters")


def named_rewards(entry: Any) -> list[tuple[str, RewardSource]]:
    """The rewards of one domain, each with its name."""
    if isinstance(entry, Mapping):
        return list(entry.items())
    several = entry if isinstance(entry, Sequence) and not isinstance(entry, str) else [entry]
    return [(reward_name(reward), reward) for reward in several]


def check_domains(rewards: DomainRewards, domains: Sequence[str]) -> None:
    """Refuses rewards that leave out a domain, or name one that is not there.

    Raises:
        RewardError: naming the domain.
    """
    if missing := [name for name in domains if name not in rewards or not named_rewards(rewards[name])]:
        raise RewardError(
            f"reward_funcs: no reward for domain {missing[0]!r}. Give every domain of {list(domains)} one."
        )
    if unknown := [name for name in rewards if name not in domains]:
        raise RewardError(f"reward_funcs: {unknown[0]!r} is no domain of the data. The data has {list(domains)}.")


def build_domain_rewards(rewards: DomainRewards, domains: Sequence[str]) -> list[RewardFunction]:
    """TRL reward functions for a mapping from domain to one or several functions.

    Raises:
        RewardError: a domain has no reward, a reward names no domain, or one is not a function.
    """
    check_domains(rewards, domains)
    return [
        of_one_domain(domain, name, reward) for domain in domains for name, reward in named_rewards(rewards[domain])
    ]


def of_one_domain(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    """``function`` as a TRL reward function that scores the rows of ``domain`` alone.

    Raises:
        RewardError: it is not a function.
    """
    if not is_function(function):
        raise RewardError(f"reward_funcs[{domain!r}]: expected a function, found {type(function).__name__}.")
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    reward = _async_reward(domain, name, function) if is_async else _sync_reward(domain, name, function)
    reward.__name__ = f"{domain}/{name}"
    return reward


@dataclass(frozen=True)
class _Batch:
    """The rows of one domain in a batch: their places in it, their places in the domain, and their arguments."""

    places: list[int]
    rows: list[int]
    arguments: dict[str, Any]
    num_rows: int

    @classmethod
    def of(cls, domain: str, arguments: dict[str, Any]) -> "_Batch":
        num_rows = len(arguments["prompts"])
        domains = arguments.pop(DOMAIN_COLUMN)
        rows = arguments.pop(ROW_COLUMN, range(num_rows))
        places = [i for i, name in enumerate(domains) if name == domain]
        own = {
            key: [value[i] for i in places] if _is_per_row(key, value, num_rows) else value
            for key, value in arguments.items()
        }
        batch = cls(places, [rows[i] for i in places], own, num_rows)
        if "log_extra" in arguments:
            own["log_extra"] = batch._log_extra(domain, arguments["log_extra"])
        if log_metric := arguments.get("log_metric"):
            own["log_metric"] = lambda name, value: log_metric(f"{name}/{domain}", value)
        return batch

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """One value for every row of the batch, None for those of other domains."""
        full: list[Any] = [None] * self.num_rows
        for place, value in zip(self.places, values, strict=True):
            full[place] = value
        return full

    def _log_extra(self, domain: str, log_extra: Callable[[str, list[Any]], None]) -> Callable[[str, list[Any]], None]:
        return lambda column, values: log_extra(f"{domain}/{column}", self.spread(values))

    def row_text(self, position: int) -> str:
        prompt, completion = (shorten(self.arguments[key][position], 160) for key in ("prompts", "completions"))
        return f"row {self.rows[position]} (prompt {prompt}, completion {completion})"


def _is_per_row(key: str, value: Any, num_rows: int) -> bool:
    return key in _PER_ROW or (isinstance(value, list) and len(value) == num_rows)


def _blame(domain: str, name: str, culprit: str) -> Blame:
    about = f", for {culprit}. Mend the function or the row; nothing was trained on it."
    return Blame(f"domain {domain!r}: reward {name!r}", about)


def _sync_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    def reward(**arguments: Any) -> list[float | None]:
        batch = _Batch.of(domain, arguments)
        if not batch.places:
            return [None] * batch.num_rows
        try:
            with _blame(domain, name, f"its {len(batch.places)} completions together"):
                values = function(**batch.arguments)
        except RewardError:
            _score_one_by_one(domain, name, function, batch)
            raise
        return _numbers(domain, name, batch, values)

    return reward


def _async_reward(domain: str, name: str, function: RewardFunction) -> RewardFunction:
    async def reward(**arguments: Any) -> list[float | None]:
        batch = _Batch.of(domain, arguments)
        if not batch.places:
            return [None] * batch.num_rows
        with _blame(domain, name, f"its {len(batch.places)} completions together"):
            values = await function(**batch.arguments)
        return _numbers(domain, name, batch, values)

    return reward


def _score_one_by_one(domain: str, name: str, function: RewardFunction, batch: _Batch) -> None:
    """Raises the error of the first row that fails alone, naming that row."""
    num_rows = len(batch.arguments["prompts"])  # the function may have emptied its arguments
    for i in range(num_rows):
        single = {k: [v[i]] if _is_per_row(k, v, num_rows) else v for k, v in batch.arguments.items()}
        single |= {key: lambda name, value: None for key in ("log_extra", "log_metric") if key in single}
        with _blame(domain, name, batch.row_text(i)):
            function(**single)


def _numbers(domain: str, name: str, batch: _Batch, values: Any) -> list[float | None]:
    where = f"domain {domain!r}: reward {name!r}"
    with _blame(domain, name, "what it returned"):
        return batch.spread(numbers_of(values, len(batch.places), where, batch.row_text))
