"""Levels of chance, intervals and corrections that every analysis uses. Pure functions."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import hypergeom
from torch import Tensor

from counterpoint.stats import Estimate

Layers = dict[int, Tensor]
"""For each layer one value per neuron."""

Sizes = tuple[int, int, int]
"""How many units the first set has, the second set, and all there are."""

_NEGLIGIBLE = 1e-200


@dataclass(frozen=True)
class Chance:
    """What random sets of the same sizes share.

    Attributes:
        jaccard: their expected Jaccard.
        p_value: the chance that they share at least as many units as were found; exact.
    """

    jaccard: float
    p_value: float


@dataclass(frozen=True)
class NeuronOverlap:
    """Two sets of neurons: ``neurons`` in all, sizes of both sets, what they share.

    ``over_all`` is chance for sets drawn from all neurons, ``within_layers`` for sets that keep their number of neurons
    in every layer: training changes some layers more than others whatever the domain, and they are used more.
    """

    neurons: int
    first: int
    second: int
    shared: int
    jaccard: float
    over_all: Chance
    within_layers: Chance


def pairs_of(count: int) -> list[tuple[int, int]]:
    """``(0, 1), (0, 2), (1, 2), ...``: every pair once, the first one varying slowest: the order of every Q axis."""
    return list(itertools.combinations(range(count), 2))


def jaccard(first_N: Tensor, second_N: Tensor) -> float:
    """``|A and B| / |A or B|`` of two sets given as bool vectors; 0 where both are empty."""
    union = int((first_N | second_N).sum())
    return int((first_N & second_N).sum()) / union if union else 0.0


def chance_of(shared: int, layers: Sequence[Sizes]) -> Chance:
    """What two sets share that are random within every layer and keep their sizes there.

    The number of shared units is a sum of independent hypergeometric ones, whose distributions are convolved. One layer
    of all units is the plain hypergeometric test.
    """
    least, probability_K = 0, np.ones(1)
    for size_a, size_b, total in layers:
        counts = np.arange(max(0, size_a + size_b - total), min(size_a, size_b) + 1)
        own = hypergeom.pmf(counts, total, size_a, size_b)
        kept = np.flatnonzero(own > _NEGLIGIBLE)
        least += int(counts[kept[0]])
        probability_K = np.convolve(probability_K, own[kept[0] : kept[-1] + 1])
    counts_K = least + np.arange(len(probability_K))
    together = sum(size_a + size_b for size_a, size_b, _ in layers)
    expected = float(probability_K @ (counts_K / np.maximum(1, together - counts_K)))
    return Chance(expected, min(1.0, float(probability_K[counts_K >= shared].sum())))


def sizes_in_layers(first_U: Tensor, second_U: Tensor, layers_U: Tensor) -> list[Sizes]:
    """Sizes of two sets (bool) in every layer, for ``chance_of``; ``layers_U`` holds each unit's layer."""
    counted = [(layers_U == layer) for layer in layers_U.unique()]
    return [(int(first_U[own].sum()), int(second_U[own].sum()), int(own.sum())) for own in counted]


def top_neurons(scores: Layers, share: float) -> Layers:
    """Which neurons are among the top ``share`` of all layers' together, as bool; never one with a score of 0."""
    flat = torch.cat(list(scores.values())) if scores else torch.zeros(0)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(round(share * len(flat))).indices] = True
    chosen &= flat > 0
    return dict(zip(scores, chosen.split([len(own) for own in scores.values()]), strict=True))


def neuron_overlap(first: Layers, second: Layers) -> NeuronOverlap:
    """The overlap of two sets given as bool per neuron of each layer, with chance over all neurons and in layers."""
    a, b = torch.cat(list(first.values())), torch.cat(list(second.values()))
    shared, whole = int((a & b).sum()), (int(a.sum()), int(b.sum()), len(a))
    layers = [(int(own.sum()), int(second[layer].sum()), len(own)) for layer, own in first.items()]
    return NeuronOverlap(
        len(a), *whole[:2], shared, jaccard(a, b), chance_of(shared, [whole]), chance_of(shared, layers)
    )


def jaccard_by_chance(size_a: int, size_b: int, total: int) -> float:
    """The expected Jaccard of two random sets of these sizes among ``total``; 0.053 for two tenths of many."""
    return chance_of(0, [(size_a, size_b, total)]).jaccard


def bootstrap(values: Tensor, statistic: Callable[[Tensor], Tensor], draws: int = 1000, seed: int = 0) -> Estimate:
    """The statistic of ``values`` [N, ...] with its 95 % percentile interval over resampled rows.

    ``statistic`` maps resamples [R, N, ...] to [R]. The random stream is private.
    """
    generator = torch.Generator().manual_seed(seed)
    index_RN = torch.randint(len(values), (draws, len(values)), generator=generator)
    found = statistic(values[index_RN]).double()
    tail = (1 - 0.95) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(statistic(values.unsqueeze(0))[0]), low, high)
