"""Inner products of all domains' gradients over independent splits, in little memory.

Legend: D domains, K splits of each, S = D * K, N batches of each, U units, E elements.

Memory holds K running sums per domain, for one part of the parameters at a time. The completions are gone through once
for every part, so memory is bought with time: ``memory_gib`` decides. Only the Grams stay.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.diagnosis.conflict_analysis.gradients import GradientSource
from counterpoint.diagnosis.conflict_analysis.noise import LOWEST_SPLITS
from counterpoint.errors import CounterpointError
from counterpoint.surgery.units import Units

MOST_SPLITS = 16
"""Splits of each domain where none are asked for: beyond it the tests gain little and memory grows."""

_ELEMENT_CHUNK = 1 << 20


@dataclass(frozen=True)
class GradientGrams:
    """The inner products of one metric: ``splits_USS`` of the split means, ``batches_NUDD`` of each round of batches.

    Round n holds the n-th batch of every domain; its diagonal is the squared norms, noise included.
    """

    metric: str
    units: Units
    splits_USS: Tensor
    batches_NUDD: Tensor


def check_splits(num_batches: int, splits: int | None) -> int:
    """The number of splits: as asked for, or as many as batches up to 16.

    Raises:
        CounterpointError: fewer than four, or no divisor of the number of batches.
    """
    found = splits or max(k for k in range(1, MOST_SPLITS + 1) if num_batches % k == 0)
    if num_batches < LOWEST_SPLITS or found < LOWEST_SPLITS or num_batches % found:
        raise CounterpointError(
            f"{num_batches} batches in {found} splits cannot tell conflict from noise: at least {LOWEST_SPLITS} splits "
            "are needed, and the batches must divide into them evenly. Ask for 8 or 16 batches."
        )
    return found


def collect(
    source: GradientSource,
    splits: int,
    scales: Mapping[str, Mapping[str, Tensor]] | None = None,
    *,
    groupings: Sequence[str] = (),
    memory_gib: float = 4.0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[GradientGrams]:
    """The inner products under every metric: ``gradient`` itself, and each of ``scales``.

    Args:
        source: the gradients.
        splits: K, a divisor of the number of batches; batch n goes to split ``n % K``.
        scales: name of a metric -> for each parameter the square root of the metric's diagonal.
        groupings: those that will be asked of the units besides the built-in ones.
        memory_gib: what the running sums may take; a part is at least one module.
        on_progress: called after every batch of every domain.

    Raises:
        CounterpointError: a gradient that is not finite (names the parameter and the domain).
    """
    parts = _parts(source, memory_gib, copies=len(source.domains) * (splits + 1))
    total = len(parts) * source.num_batches * len(source.domains)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        on_progress("gradients", done, total)

    metrics: dict[str, Mapping[str, Tensor]] = {"gradient": {}, **(scales or {})}
    collectors = [_Collector(source, splits, name, scale, groupings) for name, scale in metrics.items()]
    for names in parts:
        sums = _sum_splits(source, names, splits, collectors, tick)
        for collector in collectors:
            collector.finish(sums)
    return [collector.grams for collector in collectors]


class _Collector:
    """Turns the gradients of one part after the other into the Grams of one metric."""

    def __init__(
        self, source: GradientSource, splits: int, metric: str, scale: Mapping[str, Tensor], groupings: Sequence[str]
    ) -> None:
        units, D = Units(source.shapes, "tensor", source.anatomy, groupings), len(source.domains)
        starts = itertools.accumulate(units.counts, initial=0)
        self._units_of = {
            name: slice(low, low + n) for name, low, n in zip(units.names, starts, units.counts, strict=False)
        }
        self._scale = scale
        self.grams = GradientGrams(
            metric,
            units,
            torch.zeros(units.num_units, D * splits, D * splits, dtype=torch.float64),
            torch.zeros(source.num_batches, units.num_units, D, D, dtype=torch.float64),
        )

    def add_round(self, batch: int, name: str, value_D: Tensor) -> None:
        """Inner products of the gradients [D, ...] of one parameter in one round of batches."""
        place = self._units_of[name]
        self.grams.batches_NUDD[batch, place] = _gram(self._scaled(name, value_D), place.stop - place.start)

    def finish(self, sums: Mapping[str, Tensor]) -> None:
        """Inner products of the split means [S, ...] of one part."""
        for name, value_S in sums.items():
            place = self._units_of[name]
            self.grams.splits_USS[place] = _gram(self._scaled(name, value_S), place.stop - place.start)

    def _scaled(self, name: str, value: Tensor) -> Tensor:
        return value * self._scale[name].to(value) if self._scale else value


def _sum_splits(
    source: GradientSource,
    names: Sequence[str],
    splits: int,
    collectors: Sequence[_Collector],
    tick: Callable[[], None],
) -> dict[str, Tensor]:
    """The split means [S, ...] of one part's parameters; every round of batches is told to the collectors."""
    D, N = len(source.domains), source.num_batches
    sums: dict[str, Tensor] = {}
    for n in range(N):
        found = []
        for domain in range(D):
            found.append(source.gradients(domain, n, names))
            tick()
        for name in names:
            value_D = torch.stack([gradients.pop(name) for gradients in found])
            _check_finite(value_D, name, source.domains)
            for collector in collectors:
                collector.add_round(n, name, value_D)
            if n == 0:
                sums[name] = value_D.new_zeros(D * splits, *value_D.shape[1:])
            sums[name][n % splits :: splits] += value_D * (splits / N)
    return sums


def _check_finite(value_D: Tensor, name: str, domains: Sequence[str]) -> None:
    if not bool(value_D.isfinite().all()):
        worst = next(domain for domain, value in zip(domains, value_D, strict=True) if not value.isfinite().all())
        raise CounterpointError(
            f"The gradient of the domain {worst!r} holds NaN or Inf in {name!r}, so no inner product means anything. "
            "Check that the checkpoint is whole, or load the model in float32."
        )


def _parts(source: GradientSource, memory_gib: float, copies: int) -> list[list[str]]:
    """Parameters in parts of whole modules, as many as fit into memory as float32 in so many copies."""
    modules: dict[str, list[str]] = {}
    for name in source.shapes:
        modules.setdefault(source.anatomy.module_of(name), []).append(name)
    parts: list[list[str]] = []
    room = 0.0
    for names in modules.values():
        size = 4 * copies * sum(math.prod(source.shapes[name]) for name in names)
        if not parts or size > room:
            parts.append([])
            room = memory_gib * 2**30
        parts[-1] += names
        room -= size
    return parts


def _gram(value_S: Tensor, count: int) -> Tensor:
    """Inner products [count, S, S] of S vectors cut into ``count`` equal pieces, summed in float64."""
    value_USE = value_S.reshape(len(value_S), count, -1).transpose(0, 1)
    total = torch.zeros(count, len(value_S), len(value_S), dtype=torch.float64)
    for chunk in value_USE.split(_ELEMENT_CHUNK, dim=2):
        total += (chunk @ chunk.transpose(1, 2)).double().cpu()
    return total
