"""Units: the smallest pieces of the parameters for which inner products are kept.

A unit is one parameter, or one of its equal slices along dimension 0 where a grouping cuts it (fused experts).
Inner products add up over disjoint pieces, so the Gram of any group is the sum over its units: one pass over the
gradients serves every grouping.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..anatomy import Anatomy, Shapes
from ..errors import GroupingError
from .groupings import Groups, ParameterRule, group_parameters


@dataclass(frozen=True)
class GroupIndex:
    """The groups of one grouping, in model order, and for each unit the number of its group."""

    groups: tuple[str, ...]
    index_U: Tensor


class Units:
    """The units of a model: every parameter cut as finely as the built-in groupings and one given grouping need.

    ``shapes`` holds the parameters whose gradients take part, in model order, ``anatomy`` where they lie; by default
    it is read from their names. ``also`` are further groupings that are asked for later and may cut finer.
    """

    def __init__(
        self,
        shapes: Shapes,
        grouping: str | ParameterRule,
        anatomy: Anatomy | None = None,
        also: Sequence[str | ParameterRule] = (),
    ) -> None:
        self.names = list(shapes)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._anatomy = anatomy or Anatomy.of(shapes)
        groups = group_parameters(self._shapes, grouping, anatomy=self._anatomy)
        cuts = [groups, *(group_parameters(self._shapes, other, anatomy=self._anatomy) for other in also)]
        self.counts = [math.lcm(self._anatomy.place(n).experts, *(len(cut[n]) for cut in cuts)) for n in self.names]
        self._cache: dict[str, GroupIndex] = {}
        self.own = self._number(groups)
        if isinstance(grouping, str):
            self._cache[grouping] = self.own

    @property
    def num_units(self) -> int:
        """Number of units over all trainable parameters."""
        return sum(self.counts)

    def index(self, grouping: str | ParameterRule) -> GroupIndex:
        """The groups of a grouping; ``GroupingError`` where it cuts a parameter finer than the units."""
        if isinstance(grouping, str) and grouping in self._cache:
            return self._cache[grouping]
        index = self._number(group_parameters(self._shapes, grouping, anatomy=self._anatomy))
        if isinstance(grouping, str):
            self._cache[grouping] = index
        return index

    def _number(self, groups: Groups) -> GroupIndex:
        numbers: dict[str, int] = {}
        index: list[int] = []
        for name, count in zip(self.names, self.counts, strict=True):
            pieces = groups[name]
            if count % len(pieces):
                raise GroupingError(
                    f"The grouping cuts {name!r} into {len(pieces)} slices, but its inner products were kept for "
                    f"{count}. Give this grouping to the Surgeon itself."
                )
            for piece in pieces:
                index += [numbers.setdefault(piece, len(numbers))] * (count // len(pieces))
        return GroupIndex(tuple(numbers), torch.tensor(index, dtype=torch.int64))


def sum_units(gram_UDD: Tensor, index: GroupIndex) -> Tensor:
    """The Grams of groups [G, D, D] from those of units [U, D, D]: a sum over each group's units."""
    gram_GDD = gram_UDD.new_zeros(len(index.groups), *gram_UDD.shape[1:])
    return gram_GDD.index_add_(0, index.index_U, gram_UDD)
