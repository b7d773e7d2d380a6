"""What one combination of domain gradients leaves behind."""

from dataclasses import dataclass, field

from torch import Tensor

from .groupings import ParameterRule
from .units import Units, sum_units


@dataclass(frozen=True)
class Record:
    """The Grams and weights of one step. Everything a metric needs, and a few kilobytes."""

    step: int
    """Number of the step, counted from 0 by the Surgeon."""

    groups: tuple[str, ...]
    """The strategy's groups G, in model order."""

    domains: tuple[str, ...]
    """The domains D that took part, sorted by name."""

    gram_GDD: Tensor
    """Inner products of the domain gradients per group, float64 on the CPU."""

    weights_GD: Tensor
    """The weights the domain gradients were summed with, float64 on the CPU."""

    finite: bool
    """False where some domain's gradient was not finite and the plain sum was used instead."""

    gram_UDD: Tensor = field(repr=False)
    """The same inner products for each unit (a parameter, or one fused expert), from which any grouping follows."""

    units: Units = field(repr=False)
    """The units of ``gram_UDD``."""

    def regroup(self, grouping: str | ParameterRule) -> tuple[tuple[str, ...], Tensor]:
        """The groups and Grams ``gram_GDD`` of another grouping, from the same pass over the gradients.

        Raises ``GroupingError`` where a rule does not know a parameter or cuts finer than the units.
        """
        index = self.units.index(grouping)
        return index.groups, sum_units(self.gram_UDD, index)
