"""Checks that fields alone cannot make, on plain data so that they run however much else is wrong."""

from collections.abc import Iterator
from typing import Any

from counterpoint.config.document import Key
from counterpoint.config.domain import expand_reward
from counterpoint.config.names import GROUPINGS, SEQUENTIAL, STRATEGIES, WEIGHTINGS
from counterpoint.config.training_keys import refused_reason
from counterpoint.errors import nearest

Finding = tuple[Key, str]


def cross_findings(data: Any) -> Iterator[Finding]:
    """Path and message of everything wrong between the keys of ``data``; ill-typed parts are passed over."""
    root = _mapping(data)
    yield from _strategy(root)
    yield from _training(_mapping(root.get("training")))
    for name, domain in _mapping(root.get("domains")).items():
        yield from _rewards(("domains", name, "reward"), _mapping(domain).get("reward"))


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _strategy(root: dict[Any, Any]) -> Iterator[Finding]:
    written = root.get("strategy", "mgs")
    strategy = {"name": written} if isinstance(written, str) else _mapping(written)
    name, grouping, weighting = (strategy.get(key) for key in ("name", "grouping", "weighting"))
    for key, found, known in (
        ("name", name, STRATEGIES),
        ("grouping", grouping, GROUPINGS),
        ("weighting", weighting, WEIGHTINGS),
    ):
        if isinstance(found, str) and found not in known and ":" not in found:
            yield (
                ("strategy", key),
                f"unknown {'strategy' if key == 'name' else key} {found!r}: {nearest(found, known)}",
            )
    if name is not None and (grouping is not None or weighting is not None):
        yield ("strategy",), "has a name and a grouping or weighting. Give the name alone, or both others without it."
    if name is None and "strategy" in root and (grouping is None or weighting is None):
        yield ("strategy",), "needs a name, or grouping and weighting together."
    if name == SEQUENTIAL:
        yield from _order(strategy.get("order"), list(_mapping(root.get("domains"))))
    else:
        for key in ("order", "steps"):
            if strategy.get(key) is not None:
                yield ("strategy", key), f"belongs to the strategy {SEQUENTIAL!r}, found {name!r}. Remove it."


def _order(order: Any, domains: list[Any]) -> Iterator[Finding]:
    if not isinstance(order, list):
        return
    if not order:
        yield ("strategy", "order"), "names no domain. Remove it to take the domains as they stand."
    for index, name in enumerate(order):
        if isinstance(name, str) and name not in domains:
            hint = nearest(name, [str(domain) for domain in domains])
            yield ("strategy", "order", index), f"unknown domain {name!r}: {hint}"


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
