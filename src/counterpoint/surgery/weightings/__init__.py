"""The weightings by name, and how one is made from a name, a mapping, a function or an object.

Every file here is found by itself: a new weighting is one class with a ``name`` in a file of its own.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from ...errors import StrategyError
from ...registry import Path, named_classes, option_problems
from .._outside import import_function
from .base import Context, Halves, Weighting

__all__ = ["WEIGHTINGS", "Context", "Halves", "Weighting", "WeightingSpec", "build_weighting", "weighting_name"]

WEIGHTINGS: dict[str, type[Weighting]] = named_classes(__name__, __path__, Weighting)  # type: ignore[type-abstract]
"""The weightings by name; each Surgeon makes its own from the options."""

WeightingSpec = str | Mapping[str, Any] | Callable[..., Any]


def build_weighting(spec: WeightingSpec) -> Weighting:
    """The weighting that ``spec`` names.

    ``spec`` is a name in ``WEIGHTINGS``, ``package.module:function``, a mapping ``{"type": name, **options}``, or a
    function of ``(gram_GDD)`` or ``(gram_GDD, context)``. A class is instantiated with the options, so that each
    Surgeon has its own. Raises ``StrategyError`` for an unknown name or options a weighting does not take.
    """
    found, options = _found(spec)
    if problems := list(weighting_problems(spec)):
        listed = " ".join(f"{'.'.join(map(str, path))} {message}" for path, message in problems)
        raise StrategyError(f"The weighting {_type_of(spec)!r}: {listed}")
    if inspect.isclass(found):
        made = found(**options)
        return made if isinstance(made, Weighting) else _Adapted(made, made)
    return found if isinstance(found, Weighting) else _Adapted(functools.partial(found, **options), found)


def weighting_problems(spec: WeightingSpec, domains: Collection[str] | None = None) -> Iterator[tuple[Path, str]]:
    """Path and message of every option that the weighting does not take, or that names none of ``domains``."""
    found, options = _found(spec)
    if inspect.isclass(found):
        yield from option_problems(_type_of(spec), found, options, domains)


def weighting_name(spec: WeightingSpec) -> str:
    """A readable name of the weighting, equal for equal specifications."""
    if isinstance(spec, Mapping):
        options = ", ".join(f"{key}={_plain(value)}" for key, value in sorted(spec.items()) if key != "type")
        return f"{spec.get('type')}({options})" if options else str(spec.get("type"))
    return _type_of(spec)


def _type_of(spec: WeightingSpec) -> str:
    named = spec.get("type") if isinstance(spec, Mapping) else spec
    return named if isinstance(named, str) else getattr(named, "__name__", type(named).__name__)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(f"{key}:{value[key]}" for key in sorted(value))
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _found(spec: WeightingSpec) -> tuple[Any, dict[str, Any]]:
    """The class, function or object that ``spec`` names, and its options."""
    options = dict(spec) if isinstance(spec, Mapping) else {}
    name = options.pop("type", None) if isinstance(spec, Mapping) else spec
    if isinstance(spec, Mapping) and not isinstance(name, str):
        raise StrategyError(f"The weighting {dict(spec)} has no name: write it as {{type: NAME, OPTION: VALUE}}.")
    if not isinstance(name, str):
        return name, options
    return WEIGHTINGS.get(name) or import_function(name, "weighting", WEIGHTINGS, StrategyError), options


class _Adapted(Weighting):
    """A function or object of the user's; ``flags`` is what carries the attributes of :class:`Weighting`, if any."""

    def __init__(self, found: Any, flags: Any) -> None:
        parameters = inspect.signature(found).parameters.values()
        takes = [
            p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        if len(takes) not in (1, 2):
            raise StrategyError(
                f"The weighting {weighting_name(flags)!r} must take (gram_GDD) or (gram_GDD, context); "
                f"it takes {len(takes)} arguments."
            )
        self._found, self._takes_context = found, len(takes) == 2
        self.uses_halves = bool(getattr(flags, "uses_halves", False))
        self.weighs_one = bool(getattr(flags, "weighs_one", False))

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        return self._found(gram_GDD, context) if self._takes_context else self._found(gram_GDD)

    def state_dict(self) -> dict[str, Any]:
        return self._found.state_dict() if hasattr(self._found, "state_dict") else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if hasattr(self._found, "load_state_dict"):
            self._found.load_state_dict(state)
