"""Checks that fields alone cannot make, on plain data so that they run however much else is wrong."""

from collections.abc import Iterator
from typing import Any

from counterpoint.balance import balance_problems
from counterpoint.config.document import MAX_BITS
from counterpoint.config.domain import expand_reward
from counterpoint.config.schedule import change_findings
from counterpoint.config.sources import share_findings
from counterpoint.config.training_keys import refused_reason
from counterpoint.config.variables import Key
from counterpoint.errors import nearest
from counterpoint.inputs import MAX_DEPTH, is_text
from counterpoint.registry import SEQUENTIAL
from counterpoint.rewards import REWARDS

Finding = tuple[Key, str]


def plain_findings(value: Any, path: Key = ()) -> Iterator[Finding]:
    """Path and message of every value that no YAML file holds or no tool further on can: other checks rely on it."""
    if isinstance(value, dict | list | tuple) and len(path) >= MAX_DEPTH:
        yield path[:3], f"nested more than {MAX_DEPTH} deep. Write it flatter."
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str) and is_text(key):
                yield from plain_findings(item, (*path, key))
            else:
                yield path, f"a key must be plain text, found {key!r}."
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from plain_findings(item, (*path, index))
    elif isinstance(value, str):
        if not is_text(value):
            yield path, "holds a NUL or half of a character, which no tool can write. Remove it."
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield path, f"a whole number of {value.bit_length()} bits; at most {MAX_BITS} are read. Write a smaller one."
    elif value is not None and not isinstance(value, int | float):
        kinds = "text, a number, true, false, null, a list or a mapping"
        yield path, f"expected {kinds}, found {type(value).__name__}."


def cross_findings(data: Any) -> Iterator[Finding]:
    """Path and message of everything wrong between the keys of ``data``; ill-typed parts are passed over."""
    root = _mapping(data)
    strategy = root.get("strategy", "mgs")
    strategy = {"name": strategy} if isinstance(strategy, str) else _mapping(strategy)
    domains = [name for name in _mapping(root.get("domains")) if isinstance(name, str)]
    if "strategy" in root:
        yield from ((("strategy", *path), message) for path, message in _strategy(strategy, domains))
    balance = root.get("balance", "none")
    balance = {"name": balance} if isinstance(balance, str) else {"name": "none"} | _mapping(balance)
    yield from ((("balance", *path), message) for path, message in balance_problems(balance, domains))
    yield from change_findings(root, domains, sequential=strategy.get("name") == SEQUENTIAL)
    if _mapping(root.get("recovery")).get("watch") is True and strategy.get("name") != SEQUENTIAL:
        found = strategy.get("name")
        yield (
            ("recovery", "watch"),
            f"watches the stages of the strategy {SEQUENTIAL!r}, found {found!r}. Remove it, or use strategy: "
            f"{SEQUENTIAL}; a run of any strategy is repaired afterwards by `counterpoint recover`.",
        )
    for key in _mapping(root.get("training")):
        if reason := refused_reason(str(key)):
            yield ("training", key), f"is set by counterpoint itself: {reason}. Remove it here."
    for name, domain in _mapping(root.get("domains")).items():
        for key in ("reward", "metrics"):
            yield from _rewards(("domains", name, key), _mapping(domain).get(key))
        evaluation = _mapping(_mapping(domain).get("evaluation"))
        for path, holder in (("domains", name), _mapping(domain)), (("domains", name, "evaluation"), evaluation):
            for place, message in share_findings(holder.get("source")):
                yield (*path, "source", *place), message


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _strategy(strategy: dict[Any, Any], domains: list[str]) -> Iterator[Finding]:
    name = strategy.get("name")
    if name != SEQUENTIAL:
        from counterpoint.surgery import strategy_problems  # late: it brings torch

        yield from strategy_problems(strategy, domains)
        for key in ("order", "steps"):
            if strategy.get(key) is not None:
                yield (key,), f"belongs to the strategy {SEQUENTIAL!r}, found {name!r}. Remove it."
        return
    for key in ("grouping", "weighting", "options", "protect"):
        if strategy.get(key):
            yield (key,), f"belongs to strategies that combine gradients, found {SEQUENTIAL!r}. Remove it."
    order = strategy.get("order")
    if order == []:
        yield ("order",), "names no domain. Remove it to take the domains as they stand."
    for index, domain in enumerate(order if isinstance(order, list) else ()):
        if isinstance(domain, str) and domain not in domains:
            yield ("order", index), f"unknown domain {domain!r}: {nearest(domain, domains)}"


def _rewards(path: Key, written: Any) -> Iterator[Finding]:
    labels: set[str] = set()
    for index, reward in enumerate(expand_reward(written)):
        name = _mapping(reward).get("name")
        if not isinstance(name, str):
            continue
        where = (*path, index) if isinstance(written, list) else path
        if ":" not in name and name not in REWARDS:
            own = "Your own reward is written package.module:object."
            yield where, f"unknown reward {name!r}: {nearest(name, REWARDS)} {own}"
        label = reward.get("label") or name
        if label in labels:
            yield where, f"the reward {label!r} stands here twice. Give one of them a label of its own."
        labels.add(label)
