"""Strategies: a grouping and a weighting under one name."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import StrategyError, nearest
from ..registry import SEQUENTIAL, Path, option_problems
from .groupings import GROUPINGS, ParameterRule
from .weightings import WEIGHTINGS, WeightingSpec, weighting_name


@dataclass(frozen=True)
class Strategy:
    """How domain gradients are combined: which parameters form a group, and how each group is weighted."""

    name: str
    grouping: str | ParameterRule
    weighting: WeightingSpec
    summary: str = field(default="", compare=False)


STRATEGIES: dict[str, Strategy] = {
    name: Strategy(name, grouping, weighting.name, summary)
    for weighting in WEIGHTINGS.values()
    for name, grouping, summary in weighting.strategies
}
"""The strategies by name; each stands in the class of its weighting."""

_KEYS = ("name", "grouping", "weighting", "options", "protect")


def resolve_strategy(
    spec: str | Mapping[str, Any] | Strategy,
    grouping: str | ParameterRule | None = None,
    weighting: WeightingSpec | None = None,
) -> Strategy:
    """The strategy that ``spec`` names or spells out, as a configuration does or with parts of one's own.

    >>> resolve_strategy({"name": "mgs", "protect": ["math"]})
    >>> resolve_strategy({"grouping": "layer", "weighting": "cagrad", "options": {"c": 0.2}})
    >>> resolve_strategy({"grouping": my_rule, "weighting": {"type": "cagrad", "c": 0.2}})

    ``grouping`` and ``weighting`` replace that part of it. Raises ``StrategyError`` for an unknown name or key, and
    for ``sequential``, which is a way to train and no way to combine gradients.
    """
    base = spec if isinstance(spec, Strategy) else _spelled_out(spec) if isinstance(spec, Mapping) else _named(spec)
    if grouping is None and weighting is None:
        return base
    return _joined(
        base.grouping if grouping is None else grouping,
        base.weighting if weighting is None else weighting,
    )


def strategy_problems(spec: Mapping[str, Any], domains: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Path and message of everything wrong in a strategy for these domains; ill-typed parts are passed over."""
    yield from _name_problems(spec)
    name, weighting = spec.get("name"), spec.get("weighting")
    if isinstance(name, str):
        weighting = STRATEGIES[name].weighting if name in STRATEGIES else None
    options, protect = spec.get("options"), spec.get("protect")
    options = dict(options) if isinstance(options, Mapping) else {}
    if not isinstance(weighting, str) or weighting not in WEIGHTINGS:
        return
    found = WEIGHTINGS[weighting]
    if "protect" in options:
        del options["protect"]
        yield ("options", "protect"), f"is no option of {weighting!r}. Write it as `strategy.protect`."
    if isinstance(protect, list) and protect:
        if found.protects:
            options["protect"] = protect
        else:
            able = ", ".join(key for key, other in WEIGHTINGS.items() if other.protects)
            yield ("protect",), f"belongs to the weightings {able}, found {weighting!r}. Remove it."
    for path, message in option_problems(weighting, found, options, domains, elsewhere=("protect",)):
        yield path if path[0] == "protect" else ("options", *path), message


def _name_problems(spec: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    name, grouping, weighting = (spec.get(key) for key in ("name", "grouping", "weighting"))
    if name is not None and (grouping is not None or weighting is not None):
        yield (), "has a name and a grouping or weighting. Give the name alone, or both others without it."
    if name is None and (grouping is None or weighting is None):
        yield (), "needs a name, or grouping and weighting together."
    known = {"name": (*STRATEGIES, SEQUENTIAL), "grouping": GROUPINGS, "weighting": WEIGHTINGS}
    for key, names in known.items():
        found = spec.get(key)
        if isinstance(found, str) and found not in names and (key == "name" or ":" not in found):
            what = "strategy" if key == "name" else key
            own = "" if key == "name" else " One of your own is written package.module:object."
            yield (key,), f"unknown {what} {found!r}: {nearest(found, names)}{own}"


def _named(name: str) -> Strategy:
    if name == SEQUENTIAL:
        raise StrategyError(
            f"{SEQUENTIAL!r} trains one domain after another: it is a strategy of training, not a way to combine "
            "gradients. Use it in a training configuration; in a Surgeon choose one of "
            f"{', '.join(sorted(STRATEGIES))}."
        )
    if name not in STRATEGIES:
        raise StrategyError(
            f"Unknown strategy {name!r}: {nearest(name, STRATEGIES)} "
            "Any other is spelled out as {grouping: NAME, weighting: NAME}."
        )
    return STRATEGIES[name]


def _spelled_out(spec: Mapping[str, Any]) -> Strategy:
    for key in spec:
        if key not in _KEYS:
            raise StrategyError(f"Unknown key {key!r} in the strategy {dict(spec)}: {nearest(str(key), _KEYS)}")
    named = None if spec.get("name") is None else _named(spec["name"])
    for path, message in _name_problems(spec):
        raise StrategyError(" ".join([f"The strategy {dict(spec)}", *map(str, path), message]))
    grouping, weighting = (named.grouping, named.weighting) if named else (spec["grouping"], spec["weighting"])
    options = {**(spec.get("options") or {}), **({"protect": spec["protect"]} if spec.get("protect") else {})}
    if options:
        weighting = {**(weighting if isinstance(weighting, Mapping) else {"type": weighting}), **options}
    return _joined(grouping, weighting)


def _joined(grouping: str | ParameterRule, weighting: WeightingSpec) -> Strategy:
    for known in STRATEGIES.values():
        if (known.grouping, known.weighting) == (grouping, weighting):
            return known
    label = grouping if isinstance(grouping, str) else getattr(grouping, "__name__", type(grouping).__name__)
    return Strategy(f"{label} x {weighting_name(weighting)}", grouping, weighting)
