"""Checks that fields alone cannot make, on plain data so that they run however much else is wrong."""

from collections.abc import Iterator
from typing import Any

from counterpoint.config.document import MAX_BITS, Key
from counterpoint.config.domain import expand_reward
from counterpoint.config.names import SEQUENTIAL
from counterpoint.config.sources import share_findings
from counterpoint.config.strategy_checks import Finding, strategy_findings
from counterpoint.config.training_keys import refused_reason
from counterpoint.errors import nearest
from counterpoint.inputs import MAX_DEPTH, is_deep, is_text


def plain_findings(data: Any) -> Iterator[Finding]:
    """Path and message of every value that no YAML file holds or no tool further on can: other checks rely on it."""
    if is_deep(data):
        yield (), f"nested more than {MAX_DEPTH} deep. Write it flatter."
        return
    open_items: list[tuple[Key, Any]] = [((), data)]
    while open_items:
        path, value = open_items.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if isinstance(key, str) and is_text(key):
                    open_items.append(((*path, key), item))
                else:
                    yield path, f"a key must be plain text, found {key!r}."
        elif isinstance(value, list | tuple):
            open_items.extend(((*path, index), item) for index, item in enumerate(value))
        elif reason := _not_plain(value):
            yield path, reason


def _not_plain(value: Any) -> str | None:
    if isinstance(value, str):
        return None if is_text(value) else "holds a NUL or half of a character, which no tool can write. Remove it."
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a whole number of {value.bit_length()} bits; at most {MAX_BITS} are read. Write a smaller one."
    if value is None or isinstance(value, int | float):
        return None
    return f"expected text, a number, true, false, null, a list or a mapping, found {type(value).__name__}."


def cross_findings(data: Any) -> Iterator[Finding]:
    """Path and message of everything wrong between the keys of ``data``; ill-typed parts are passed over."""
    root = _mapping(data)
    yield from _strategy(root)
    yield from _training(_mapping(root.get("training")))
    yield from _recovery(root)
    for name, domain in _mapping(root.get("domains")).items():
        yield from _rewards(("domains", name, "reward"), _mapping(domain).get("reward"))
        evaluation = _mapping(_mapping(domain).get("evaluation"))
        for path, holder in (("domains", name), _mapping(domain)), (("domains", name, "evaluation"), evaluation):
            for place, message in share_findings(holder.get("source")):
                yield (*path, "source", *place), message


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _strategy(root: dict[Any, Any]) -> Iterator[Finding]:
    written = root.get("strategy", "mgs")
    strategy = {"name": written} if isinstance(written, str) else _mapping(written)
    yield from strategy_findings(strategy, "strategy" in root, list(_mapping(root.get("domains"))))


def _recovery(root: dict[Any, Any]) -> Iterator[Finding]:
    if _mapping(root.get("recovery")).get("watch") is not True:
        return
    written = root.get("strategy", "mgs")
    name = written if isinstance(written, str) else _mapping(written).get("name")
    if name != SEQUENTIAL:
        yield (
            ("recovery", "watch"),
            (
                f"watches the stages of the strategy {SEQUENTIAL!r}, found {name!r}. Remove it, or use strategy: "
                f"{SEQUENTIAL}; a run of any strategy is repaired afterwards by `counterpoint refresh`."
            ),
        )


def _training(training: dict[Any, Any]) -> Iterator[Finding]:
    for key in training:
        if reason := refused_reason(str(key)):
            yield ("training", key), f"is set by counterpoint itself: {reason}. Remove it here."


def _rewards(path: Key, written: Any) -> Iterator[Finding]:
    from counterpoint.rewards import REWARDS  # late: rewards may grow heavy, and only names are needed

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
