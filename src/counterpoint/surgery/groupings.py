"""Groupings: which parameters are one vector. Every group of a Gram comes from here.

Layers and blocks are those of ``counterpoint.anatomy``.

Experts that are stored fused, all in one parameter, are cut into equal slices along dimension 0: a group for each.
LoRA factors of fused experts mix the experts in one matrix and form one group per layer, ``layers.0.experts``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..anatomy import Anatomy, Place, Shapes, parameters_of, plain_name
from ..errors import GroupingError
from ._outside import import_function

Groups = dict[str, tuple[str, ...]]
"""For each parameter the groups of its equal slices along dimension 0; one name for an uncut parameter."""

ParameterRule = Callable[[str, tuple[int, ...]], str | Sequence[str]]
"""A grouping of one's own: ``(name, shape) -> group`` or a sequence of groups, one per slice along dimension 0."""


@dataclass(frozen=True)
class Grouping:
    """A grouping that goes by what a parameter is."""

    name: str
    groups: str
    """What its groups are."""
    rule: Callable[[str, Place], tuple[str, ...]]
    """From a parameter's name and place to its groups, as in ``Groups``."""


GROUPINGS: dict[str, Grouping] = {
    grouping.name: grouping
    for grouping in (
        Grouping("global", "one group, `global`", lambda name, place: ("global",)),
        Grouping("layer", "each layer; embedding, final norm and `lm_head` apart", lambda name, place: (place.layer,)),
        Grouping(
            "module",
            "each block of a layer (attention, MLP, expert ...) with its norms; the rest as in `layer`",
            lambda name, place: place.blocks,
        ),
        Grouping("tensor", "each parameter, named as it is", lambda name, place: (plain_name(name),)),
    )
}
"""The groupings by name."""


def group_parameters(
    source: nn.Module | Shapes,
    grouping: str | ParameterRule = "module",
    *,
    names: Iterable[str] | None = None,
    anatomy: Anatomy | None = None,
) -> Groups:
    """The groups of every parameter under a grouping.

    Args:
        source: a module, whose tree tells layers and blocks apart, or names with shapes, which are told apart by name.
        grouping: a name in ``GROUPINGS``, ``package.module:function``, or a function ``(name, shape) -> group``.
        names: the parameters to group; by default those of a module that require a gradient, or all of a mapping.
        anatomy: of ``source``, where it has been read already.

    Raises:
        GroupingError: an unknown grouping, or one that gives no group or cuts a parameter unevenly.
    """
    shapes = {name: tuple(getattr(found, "shape", found)) for name, found in _named(source).items()}
    if names is None:
        names = [name for name, found in _named(source).items() if getattr(found, "requires_grad", True)]
    if isinstance(grouping, str) and grouping in GROUPINGS:
        rule, places = GROUPINGS[grouping].rule, anatomy or Anatomy.of(source)
        return {name: rule(name, places.place(name)) for name in names}
    own = import_function(grouping, "grouping", GROUPINGS, GroupingError) if isinstance(grouping, str) else grouping
    return {name: _apply(own, name, shapes[name]) for name in names}


def _named(source: nn.Module | Shapes) -> Mapping[str, Any]:
    return parameters_of(source) if isinstance(source, nn.Module) else source


def _apply(rule: Callable[..., object], name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    answer = rule(name, shape)
    groups = (answer,) if isinstance(answer, str) else tuple(answer) if isinstance(answer, list | tuple) else ()
    if not groups or not all(isinstance(group, str) and group for group in groups):
        raise GroupingError(
            f"The grouping gave {answer!r} for the parameter {name!r}; "
            "it must give a group name, or one name per slice along dimension 0."
        )
    if len(groups) > 1 and (not shape or shape[0] % len(groups)):
        raise GroupingError(
            f"The grouping cuts {name!r} of shape {shape} into {len(groups)} slices; "
            "dimension 0 must be a multiple of the number of slices."
        )
    return groups
