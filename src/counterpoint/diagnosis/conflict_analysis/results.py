"""What the conflict analysis finds, as data: arrays that a heat map or a table can be drawn from.

Axes: G groups, D domains, Q pairs of domains in the order of ``pairs``, L layers, B modules of a layer. NaN (null in
JSON) is "cannot be known": no gradient, or one lost in noise.
"""

from dataclasses import dataclass

from torch import Tensor

from counterpoint.diagnosis.conflict_analysis.controls import Control


@dataclass(frozen=True)
class GroupConflicts:
    """One grouping under one metric."""

    grouping: str
    groups: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]

    cosine_GQ: Tensor
    """Cosine between the means over all batches: attenuated by noise."""

    floor_GQ: Tensor
    """Where nothing relates two domains, |cosine| stays below this in all but a share ``level`` of cases."""

    debiased_GQ: Tensor
    """The cosine without attenuation."""

    debiased_low_GQ: Tensor
    debiased_high_GQ: Tensor
    """Its ``1 - level`` interval; not corrected for the number of groups."""

    p_value_GQ: Tensor
    """Two-sided, of an inner product of zero; not corrected."""

    verdict_GQ: Tensor
    """-1 conflict, 1 synergy, 0 within noise; false discovery rate at most ``level`` over all groups and pairs."""

    split_half_GD: Tensor
    """Cosine of every domain with itself between two halves of its batches."""

    batch_product_GQ: Tensor
    batch_deviation_GQ: Tensor
    """Mean and standard deviation of the inner product of one batch of each domain, over batches."""

    batch_negative_GQ: Tensor
    """Share of single batches with a negative product; noise alone gives one half."""

    tested: int
    """Groups x pairs with a p-value."""

    conflicts: int
    synergies: int

    controls: tuple[Control, ...]


@dataclass(frozen=True)
class HeatMap:
    """The grouping ``module`` as layers x modules, for every pair; modules outside the layers are left out."""

    layers: tuple[int, ...]
    modules: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    cosine_QLB: Tensor
    debiased_QLB: Tensor
    verdict_QLB: Tensor


@dataclass(frozen=True)
class MetricConflicts:
    """Everything under one metric: ``gradient`` (Euclidean) or ``adam``."""

    metric: str
    groupings: tuple[GroupConflicts, ...]
    heat_map: HeatMap | None

    def grouping(self, name: str) -> GroupConflicts:
        """The results of one grouping; KeyError if it was not asked for."""
        return {found.grouping: found for found in self.groupings}[name]


@dataclass(frozen=True)
class Conflicts:
    """Conflicts between the policy gradients of domains at one model."""

    domains: tuple[str, ...]
    prompts: tuple[int, ...]
    """Prompts of each domain that took part: those whose completions differ in reward."""

    completions: tuple[int, ...]
    batches: int
    splits: int
    level: float
    metrics: tuple[MetricConflicts, ...]

    def metric(self, name: str = "gradient") -> MetricConflicts:
        """The results under one metric; KeyError if it was not measured."""
        return {found.metric: found for found in self.metrics}[name]
