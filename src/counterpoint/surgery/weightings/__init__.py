"""The weightings by name, and how one is made from a name, a mapping, a function or an object."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ...errors import StrategyError
from .._outside import import_function
from .base import Context, Halves, Ones, Weighting
from .ema import EMAPCGrad
from .pcgrad import PCGrad
from .shuffled import ShuffledPCGrad
from .significant import SignificantPCGrad
from .static import StaticWeights
from .torchjd import TORCHJD, TorchJDWeighting

__all__ = ["WEIGHTINGS", "Context", "Halves", "Weighting", "WeightingSpec", "build_weighting", "weighting_name"]

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "ones": Ones,
    "pcgrad": PCGrad,
    "significant": SignificantPCGrad,
    "ema": EMAPCGrad,
    "shuffled": ShuffledPCGrad,
    "static": StaticWeights,
    **{name: functools.partial(TorchJDWeighting, name) for name in TORCHJD},
}
"""The built-in weightings by name; each Surgeon makes its own from the options."""

WeightingSpec = str | Mapping[str, Any] | Callable[..., Any]


def build_weighting(spec: WeightingSpec) -> Weighting:
    """The weighting that ``spec`` names.

    ``spec`` is a name in ``WEIGHTINGS``, ``package.module:function``, a mapping ``{"type": name, **options}``, or a
    function of ``(gram_GDD)`` or ``(gram_GDD, context)``. A class is instantiated with the options, so that each
    Surgeon has its own. Raises ``StrategyError`` for an unknown name or options a weighting does not take.
    """
    if not isinstance(spec, Mapping):
        return _build(spec, {})
    options = dict(spec)
    name = options.pop("type", None)
    if not isinstance(name, str):
        raise StrategyError(f"The weighting {dict(spec)} has no name: write it as {{type: NAME, OPTION: VALUE}}.")
    return _build(name, options)


def weighting_name(spec: WeightingSpec) -> str:
    """A readable name of the weighting, equal for equal specifications."""
    if isinstance(spec, Mapping):
        options = ", ".join(f"{key}={_plain(value)}" for key, value in sorted(spec.items()) if key != "type")
        return f"{spec.get('type')}({options})" if options else str(spec.get("type"))
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{value[key]}" for key in sorted(value))
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _build(name: Any, options: dict[str, Any]) -> Weighting:
    if not isinstance(name, str):
        return _adapted(name, options)
    if name not in WEIGHTINGS:
        return _adapted(import_function(name, "weighting", WEIGHTINGS, StrategyError), options)
    signature = inspect.signature(WEIGHTINGS[name])
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise StrategyError(f"The weighting {name!r}: {error}. Its options: {known}.") from error
    return WEIGHTINGS[name](**options)


def _adapted(found: Any, options: dict[str, Any]) -> Weighting:
    """A function, class or object of the user's as a weighting."""
    flags = {flag: bool(getattr(found, flag, False)) for flag in ("uses_halves", "weighs_one")}
    if inspect.isclass(found):
        found = found(**options)
    elif options:
        found = functools.partial(found, **options)
    takes = [p for p in inspect.signature(found).parameters.values() if p.default is p.empty and _positional(p)]
    if len(takes) not in (1, 2):
        raise StrategyError(
            f"The weighting {weighting_name(found)!r} must take (gram_GDD) or (gram_GDD, context); "
            f"it takes {len(takes)} arguments."
        )
    if isinstance(found, Weighting) and len(takes) == 2:
        return found
    return _Adapted(found, len(takes) == 2, **flags)


def _positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


class _Adapted(Weighting):
    def __init__(self, found: Any, takes_context: bool, uses_halves: bool, weighs_one: bool) -> None:
        self._found, self._takes_context = found, takes_context
        self.uses_halves = uses_halves or bool(getattr(found, "uses_halves", False))
        self.weighs_one = weighs_one or bool(getattr(found, "weighs_one", False))

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        return self._found(gram_GDD, context) if self._takes_context else self._found(gram_GDD)

    def state_dict(self) -> dict[str, Any]:
        return self._found.state_dict() if hasattr(self._found, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if hasattr(self._found, "load_state_dict"):
            self._found.load_state_dict(state)
