"""Checks inside ``strategy``, and between it and the domains, on plain data."""

import math
from collections.abc import Iterator
from typing import Any

from counterpoint.config.document import Key
from counterpoint.config.names import (
    GROUPINGS,
    MAX_PROTECTED,
    NAMED_STRATEGIES,
    OPTIONS,
    PROTECTING,
    SEQUENTIAL,
    STRATEGIES,
    WEIGHTINGS,
)
from counterpoint.errors import nearest

Finding = tuple[Key, str]


def strategy_findings(strategy: dict[Any, Any], written: bool, domains: list[Any]) -> Iterator[Finding]:
    """Everything wrong in ``strategy``; ``written`` says whether the file has one, ``domains`` are its domains."""
    yield from _unknown_names(strategy)
    name, grouping, weighting = (strategy.get(key) for key in ("name", "grouping", "weighting"))
    if name is not None and (grouping is not None or weighting is not None):
        yield ("strategy",), "has a name and a grouping or weighting. Give the name alone, or both others without it."
    if name is None and written and (grouping is None or weighting is None):
        yield ("strategy",), "needs a name, or grouping and weighting together."
    if name == SEQUENTIAL:
        yield from _order(strategy.get("order"), domains)
    else:
        for key in ("order", "steps"):
            if strategy.get(key) is not None:
                yield ("strategy", key), f"belongs to the strategy {SEQUENTIAL!r}, found {name!r}. Remove it."
    if isinstance(name, str):
        weighting = NAMED_STRATEGIES[name][1] if name in NAMED_STRATEGIES else name
    if isinstance(weighting, str):
        yield from _options(strategy.get("options"), weighting, domains)
        yield from _protect(strategy.get("protect"), weighting, domains)


def _unknown_names(strategy: dict[Any, Any]) -> Iterator[Finding]:
    for key, known in (("name", STRATEGIES), ("grouping", GROUPINGS), ("weighting", WEIGHTINGS)):
        found = strategy.get(key)
        if isinstance(found, str) and found not in known and ":" not in found:
            what = "strategy" if key == "name" else key
            yield ("strategy", key), f"unknown {what} {found!r}: {nearest(found, known)}"


def _order(order: Any, domains: list[Any]) -> Iterator[Finding]:
    if not isinstance(order, list):
        return
    if not order:
        yield ("strategy", "order"), "names no domain. Remove it to take the domains as they stand."
    yield from _unknown_domains("order", order, domains)


def _options(options: Any, weighting: str, domains: list[Any]) -> Iterator[Finding]:
    known = () if weighting == SEQUENTIAL else OPTIONS.get(weighting)
    if known is None or not isinstance(options, dict | None):
        return
    options = options or {}
    if "weights" in known and "weights" not in options:
        yield ("strategy",), f"needs the weights of {weighting!r}. Write `options: {{weights: {{DOMAIN: NUMBER}}}}`."
    for option, value in options.items():
        path = ("strategy", "options", str(option))
        if option not in known:
            hint = nearest(str(option), known) if known else f"{weighting!r} has none. Remove it."
            hint = "Write it as `strategy.protect`." if option == "protect" else hint
            yield path, f"is no option of {weighting!r}: {hint}"
        elif option == "weights":
            yield from _weights(path, value, domains)
        elif not _number(value) or not (0 < value < 0.5 if option == "level" else 0 <= value < 1):
            limits = "above 0 and below 0.5" if option == "level" else "of at least 0 and below 1"
            yield path, f"should be a number {limits}, found {value!r}."


def _weights(path: Key, weights: Any, domains: list[Any]) -> Iterator[Finding]:
    if not isinstance(weights, dict) or not weights:
        yield path, f"should be a mapping of domains to numbers, found {weights!r}."
        return
    for name, weight in weights.items():
        if name not in domains:
            yield (*path, str(name)), f"unknown domain {name!r}: {nearest(str(name), [str(d) for d in domains])}"
        elif not _number(weight) or not 0 < weight < math.inf:
            yield (*path, str(name)), f"should be a positive finite number, found {weight!r}."


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _protect(protect: Any, weighting: str, domains: list[Any]) -> Iterator[Finding]:
    path: Key = ("strategy", "protect")
    if not isinstance(protect, list) or not protect:
        return
    if weighting not in PROTECTING:
        yield path, f"belongs to the weightings {', '.join(PROTECTING)}, found {weighting!r}. Remove it."
    yield from _unknown_domains("protect", protect, domains)
    if len(protect) > MAX_PROTECTED or any(protect.count(name) > 1 for name in protect):
        yield path, f"lists {len(protect)} domains. Give at most {MAX_PROTECTED}, each of them once."
    elif domains and all(name in protect for name in domains):
        yield path, "lists every domain, so that none is left to give way. Leave one out, or use the strategy `mixed`."


def _unknown_domains(key: str, names: list[Any], domains: list[Any]) -> Iterator[Finding]:
    for index, name in enumerate(names):
        if isinstance(name, str) and name not in domains:
            hint = nearest(name, [str(domain) for domain in domains])
            yield ("strategy", key, index), f"unknown domain {name!r}: {hint}"
