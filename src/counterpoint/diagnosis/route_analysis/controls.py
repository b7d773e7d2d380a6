"""What noise and chance make of a cosine on some neurons: intervals, random signs, random neurons. Pure functions.

A cosine is that of the sums over neurons of ``a.b``, ``a.a`` and ``b.b``, the last axis of every tensor of values.

Legend: N neurons of all layers, W parts of a neuron, L layers, S chosen neurons, R resamples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from counterpoint.stats import Estimate

MIN_NEURONS = 10
"""Fewer neurons give no interval."""
_DRAWS = 1000
_CONTROLS = 400
_NUMBERS_AT_ONCE = 2_000_000


def cosine_interval(values_S3: Tensor, generator: torch.Generator, draws: int = _DRAWS) -> Estimate:
    """The cosine over neurons with its percentile interval over resampled neurons.

    Fewer than ``MIN_NEURONS`` give the number without an interval; not a number where one edit is 0.
    """
    value = float(_cosine(values_S3.sum(0)))
    count = len(values_S3)
    if count < MIN_NEURONS or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    drawn = []
    for rows in _chunks(draws, count):
        index_RS = torch.randint(count, (rows, count), generator=generator)
        drawn.append(_cosine(values_S3[index_RS].sum(1)))
    return Estimate(value, *_range(torch.cat(drawn)))


def sign_noise(values_S3: Tensor, generator: torch.Generator, draws: int = _DRAWS) -> float:
    """What 95 % of absolute cosines stay below if each neuron's ``a.b`` gets a random sign."""
    dot_S, norm = values_S3[:, 0], float((values_S3[:, 1].sum() * values_S3[:, 2].sum()).sqrt())
    if norm == 0:
        return math.nan
    drawn = []
    for rows in _chunks(draws, len(dot_S)):
        signs_RS = torch.randint(2, (rows, len(dot_S)), generator=generator).double() * 2 - 1
        drawn.append((signs_RS @ dot_S).abs() / norm)
    return float(torch.quantile(torch.cat(drawn), 0.95))


@dataclass(frozen=True)
class Controls:
    """Sums over random neurons, as many in every layer as were chosen there: ``outside`` them, or ``anywhere``.

    Both are [L, R, W, 3], layers as in ``layers``. Those outside are drawn with replacement, so that a small rest does
    not look certain; a layer that has none holds NaN. Those anywhere are drawn without.
    """

    layers: tuple[int, ...]
    outside_LRW3: Tensor
    anywhere_LRW3: Tensor

    def elsewhere(self, layers: Sequence[int], parts: Sequence[int]) -> Estimate | None:
        """Mean and 95 % range of the cosine on neurons outside; None where a layer has none."""
        cosines_R = self._cosines(self.outside_LRW3, layers, parts)
        if bool(cosines_R.isnan().all()):
            return None
        return Estimate(float(cosines_R.nanmean()), *_range(cosines_R))

    def p_value(self, cosine: float, layers: Sequence[int], parts: Sequence[int]) -> float:
        """Two-sided permutation test within layers: are the chosen neurons an ordinary choice?"""
        cosines_R = self._cosines(self.anywhere_LRW3, layers, parts)
        if math.isnan(cosine):
            return math.nan
        centre = cosines_R.nanmean()
        as_far = int(((cosines_R - centre).abs() >= abs(cosine - centre) - 1e-12).sum())
        return (1 + as_far) / (1 + len(cosines_R))

    def _cosines(self, sums_LRW3: Tensor, layers: Sequence[int], parts: Sequence[int]) -> Tensor:
        rows = [self.layers.index(layer) for layer in layers]
        return _cosine(sums_LRW3[rows].sum(0)[:, list(parts)].sum(1))


def draw_controls(values_NW3: Tensor, chosen_N: Tensor, layers_N: Tensor, generator: torch.Generator) -> Controls:
    """Draws the controls of the neurons ``chosen_N`` [bool]."""
    layers = layers_N.unique().tolist()
    outside, anywhere = [], []
    for layer in layers:
        inside_N = layers_N == layer
        wanted = int((chosen_N & inside_N).sum())
        rest_M = values_NW3[inside_N & ~chosen_N].flatten(1)
        all_M = values_NW3[inside_N].flatten(1)
        outside.append(_with_replacement(rest_M, wanted, generator))
        orders = (torch.randperm(len(all_M), generator=generator)[:wanted] for _ in range(_CONTROLS))
        anywhere.append(torch.stack([all_M[order].sum(0) for order in orders]))
    shape = (len(layers), _CONTROLS, *values_NW3.shape[1:])
    return Controls(tuple(layers), torch.stack(outside).view(shape), torch.stack(anywhere).view(shape))


def _with_replacement(values_M: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    if wanted and not len(values_M):
        return torch.full((_CONTROLS, values_M.shape[1]), math.nan, dtype=values_M.dtype)
    if not wanted:
        return torch.zeros(_CONTROLS, values_M.shape[1], dtype=values_M.dtype)
    drawn = []
    for rows in _chunks(_CONTROLS, wanted * values_M.shape[1]):
        index_RS = torch.randint(len(values_M), (rows, wanted), generator=generator)
        drawn.append(values_M[index_RS].sum(1))
    return torch.cat(drawn)


def _cosine(sums: Tensor) -> Tensor:
    """Not a number where one edit is 0 there."""
    return sums[..., 0] / (sums[..., 1] * sums[..., 2]).sqrt()


def _range(values_R: Tensor) -> tuple[float, float]:
    kept = values_R[~values_R.isnan()]
    if not len(kept):
        return math.nan, math.nan
    low, high = torch.quantile(kept, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _chunks(draws: int, count: int) -> Iterator[int]:
    size = max(1, _NUMBERS_AT_ONCE // max(1, count))
    for low in range(0, draws, size):
        yield min(size, draws - low)
