"""Strategies: a grouping and a weighting under one name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import StrategyError, nearest
from .groupings import ParameterRule
from .weightings import WeightingSpec, build_weighting, weighting_name


@dataclass(frozen=True)
class Strategy:
    """How domain gradients are combined: which parameters form a group, and how each group is weighted."""

    name: str
    grouping: str | ParameterRule
    weighting: WeightingSpec


STRATEGIES: dict[str, Strategy] = {
    "mixed": Strategy("mixed", "global", "ones"),
    "pcgrad": Strategy("pcgrad", "global", "pcgrad"),
    "mgs": Strategy("mgs", "module", "pcgrad"),
    "mgs-tensor": Strategy("mgs-tensor", "tensor", "pcgrad"),
    "mgs-significant": Strategy("mgs-significant", "module", "significant"),
    "mgs-ema": Strategy("mgs-ema", "module", "ema"),
    "mgs-shuffled": Strategy("mgs-shuffled", "module", "shuffled"),
}
"""The strategies by name."""


def resolve_strategy(
    spec: str | Mapping[str, Any] | Strategy,
    grouping: str | ParameterRule | None = None,
    weighting: WeightingSpec | None = None,
) -> Strategy:
    """The strategy that ``spec`` names or spells out as ``{"grouping": ..., "weighting": ...}``.

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


def needs_halves(strategy: Strategy) -> bool:
    """Whether the strategy's weighting looks at every domain's gradient in two halves.

    It then learns from a step only what it sees of domains with at least two micro-batches.
    """
    return build_weighting(strategy.weighting).uses_halves


def protected_domains(strategy: Strategy) -> tuple[str, ...]:
    """The domains that the strategy names as protected, which a trainer can compare with those it has."""
    return tuple(strategy.weighting.get("protect", ())) if isinstance(strategy.weighting, Mapping) else ()


def weighted_domains(strategy: Strategy) -> tuple[str, ...]:
    """The domains to which the strategy gives a fixed weight."""
    weighting = strategy.weighting
    if isinstance(weighting, Mapping) and weighting.get("type") == "static":
        return tuple(weighting.get("weights", ()))
    return ()


def _named(name: str) -> Strategy:
    if name == "sequential":
        raise StrategyError(
            "'sequential' trains one domain after another: it is a strategy of training, not a way to combine "
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
    keys = ("grouping", "weighting")
    for key in spec:
        if key not in keys:
            raise StrategyError(f"Unknown key {key!r} in the strategy {dict(spec)}: {nearest(str(key), keys)}")
    missing = [key for key in keys if key not in spec]
    if missing:
        raise StrategyError(
            f"The strategy {dict(spec)} lacks {' and '.join(missing)}: give both grouping and weighting."
        )
    return _joined(spec["grouping"], spec["weighting"])


def _joined(grouping: str | ParameterRule, weighting: WeightingSpec) -> Strategy:
    for known in STRATEGIES.values():
        if (known.grouping, known.weighting) == (grouping, weighting):
            return known
    label = grouping if isinstance(grouping, str) else getattr(grouping, "__name__", type(grouping).__name__)
    return Strategy(f"{label} x {weighting_name(weighting)}", grouping, weighting)
