"""Checks that fields alone cannot make, on plain data so that they run however much else is wrong."""

from collections.abc import Iterator
from typing import Any

from counterpoint.config.document import Key
from counterpoint.config.domain import expand_reward
from counterpoint.config.names import SEQUENTIAL
from counterpoint.config.strategy_checks import Finding, strategy_findings
from counterpoint.config.training_keys import refused_reason
from counterpoint.errors import nearest


def cross_findings(data: Any) -> Iterator[Finding]:
    """Path and message of everything wrong between the keys of ``data``; ill-typed parts are passed over."""
    root = _mapping(data)
    yield from _strategy(root)
    yield from _training(_mapping(root.get("training")))
    yield from _recovery(root)
    for name, domain in _mapping(root.get("domains")).items():
        yield from _rewards(("domains", name, "reward"), _mapping(domain).get("reward"))


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
