"""The weightings by name, and how one is made from a name, a mapping or a function."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...errors import StrategyError
from .._outside import import_function
from .base import Context, Weighting, ones
from .ema import EMAPCGrad
from .pcgrad import PCGrad
from .shuffled import shuffled
from .significant import SignificantPCGrad
from .static import StaticWeights
from .torchjd import TORCHJD, Method, TorchJDWeighting

WEIGHTINGS: dict[str, Weighting | Method | type[PCGrad | EMAPCGrad | SignificantPCGrad | StaticWeights]] = {
    "ones": ones,
    "pcgrad": PCGrad,
    "significant": SignificantPCGrad,
    "ema": EMAPCGrad,
    "shuffled": shuffled,
    "static": StaticWeights,
    **TORCHJD,
}
"""The built-in weightings by name; a class is instantiated for each Surgeon, a ``Method`` is one of TorchJD's and needs
the extra ``torchjd``."""

WeightingSpec = str | Mapping[str, Any] | Weighting


def build_weighting(spec: WeightingSpec) -> Weighting:
    """The weighting that ``spec`` names.

    ``spec`` is a name in ``WEIGHTINGS``, ``package.module:function``, a mapping ``{"type": name, **options}``, or a
    function of ``(gram_GDD)`` or ``(gram_GDD, context)``. A class is instantiated with the options, so that each
    Surgeon has its own. Raises ``StrategyError`` for an unknown name or options a weighting does not take.
    """
    name, options = _parts(spec)
    if name in TORCHJD:
        return TorchJDWeighting(name, **options)
    found = find_weighting(spec)
    return _own(name, found, options) if name in WEIGHTINGS else _outside(found, options)


def find_weighting(spec: WeightingSpec) -> Any:
    """The function, class or ``Method`` that ``spec`` names, without its options."""
    name, _ = _parts(spec)
    if not isinstance(name, str):
        return name
    return WEIGHTINGS.get(name) or import_function(name, "weighting", WEIGHTINGS, StrategyError)


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


def _parts(spec: WeightingSpec) -> tuple[Any, dict[str, Any]]:
    """The weighting, mostly its name, and the options in ``spec``."""
    if not isinstance(spec, Mapping):
        return spec, {}
    options = dict(spec)
    name = options.pop("type", None)
    if not isinstance(name, str):
        raise StrategyError(f"The weighting {dict(spec)} has no name: write it as {{type: NAME, OPTION: VALUE}}.")
    return name, options


def _own(name: str, found: Any, options: dict[str, Any]) -> Any:
    parameters = inspect.signature(found).parameters if inspect.isclass(found) else {}
    known = sorted(parameters)
    for option in options:
        if option not in known:
            hint = f"it takes {', '.join(known)}" if known else "it takes none"
            raise StrategyError(f"The weighting {name!r} has no option {option!r}; {hint}.")
    for option in known:
        if option not in options and parameters[option].default is inspect.Parameter.empty:
            raise StrategyError(f"The weighting {name!r} needs the option {option!r}.")
    return found(**options) if inspect.isclass(found) else found


def _outside(function: Any, options: dict[str, Any]) -> Weighting:
    if inspect.isclass(function):
        function = function(**options)
    elif options:
        partial: Any = functools.partial(function, **options)
        for flag in ("uses_halves", "weighs_one"):
            setattr(partial, flag, getattr(function, flag, False))
        function = partial
    takes = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and _positional(p)]
    if len(takes) not in (1, 2):
        raise StrategyError(
            f"The weighting {weighting_name(function)!r} must take (gram_GDD) or (gram_GDD, context); "
            f"it takes {len(takes)} arguments."
        )
    return function if len(takes) == 2 else _GramOnly(function)


def _positional(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)


class _GramOnly:
    """A weighting made from a function of the Gram alone; whatever else that object has (its state) shows through."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        return self._function(gram_GDD)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)
