"""Whether two sets of neurons share more than chance would: over all neurons, and layer by layer.

Training changes some layers more than others whatever the domain, so two sets overlap already because they lie in the
same layers. The stricter null keeps every set's number of neurons per layer and shuffles inside layers only.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from counterpoint.diagnosis._chance import jaccard, jaccard_by_chance, overlap_p_value
from counterpoint.diagnosis.edit_analysis.neurons import Layers
from counterpoint.stats import Estimate


@dataclass(frozen=True)
class Chance:
    """What shuffled sets share.

    Attributes:
        jaccard: at the expected overlap.
        p_value: chance of at least the overlap found, exact.
        shuffled: mean Jaccard of real shuffles with the range that holds 95 % of them: a check of the formula.
        shuffled_p_value: share of shuffles, the sets themselves counted as one, that reach the overlap found.
    """

    jaccard: float
    p_value: float
    shuffled: Estimate | None
    shuffled_p_value: float | None


@dataclass(frozen=True)
class Overlap:
    """Two sets of neurons, their Jaccard, and what chance gives over all neurons and within layers."""

    neurons: int
    first: int
    second: int
    shared: int
    jaccard: float
    over_all: Chance
    within_layers: Chance


def overlap(first: Layers, second: Layers, permutations: int = 200, seed: int = 0) -> Overlap:
    """The overlap of two sets given as bool per neuron of each layer; ``permutations`` 0 leaves the shuffles out."""
    a, b = torch.cat(list(first.values())), torch.cat(list(second.values()))
    shared, sizes = int((a & b).sum()), (int(a.sum()), int(b.sum()))
    expected = sum(int(first[k].sum()) * int(second[k].sum()) / len(first[k]) for k in first)
    generator = torch.Generator().manual_seed(seed)
    over_all = _shuffle([a], [b], permutations, generator)
    within = _shuffle(list(first.values()), list(second.values()), permutations, generator)
    return Overlap(
        len(a),
        *sizes,
        shared,
        jaccard(a, b),
        Chance(
            jaccard_by_chance(*sizes, len(a)),
            overlap_p_value(shared, *sizes, len(a)),
            *_summary(over_all, shared, sum(sizes)),
        ),
        Chance(
            _jaccard(expected, sum(sizes)),
            within_layers_p_value(shared, first, second),
            *_summary(within, shared, sum(sizes)),
        ),
    )


def within_layers_p_value(shared: int, first: Layers, second: Layers) -> float:
    """Chance that sets shuffled inside every layer share at least ``shared``: hypergeometrics of layers, convolved."""
    total = np.ones(1)
    for layer, own in first.items():
        total = np.convolve(total, _hypergeometric(int(own.sum()), int(second[layer].sum()), len(own)))
    return min(1.0, float(total[shared:].sum()))


def _hypergeometric(size_a: int, size_b: int, total: int) -> np.ndarray:
    """Chance of each overlap from 0 to the smaller size."""
    tails = np.array([overlap_p_value(k, size_a, size_b, total) for k in range(min(size_a, size_b) + 2)])
    return np.maximum(tails[:-1] - tails[1:], 0)


def _shuffle(first: list[Tensor], second: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Overlaps [count] of the first set with the second shuffled inside each part."""
    sizes = [int(own.sum()) for own in second]
    found = torch.zeros(count, dtype=torch.int64)
    for i in range(count):
        for own, size in zip(first, sizes, strict=True):
            found[i] += own[torch.randperm(len(own), generator=generator)[:size]].sum()
    return found


def _summary(overlaps: Tensor, shared: int, sizes: int) -> tuple[Estimate | None, float | None]:
    if not len(overlaps):
        return None, None
    values = torch.tensor([_jaccard(float(k), sizes) for k in overlaps], dtype=torch.float64)
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    reached = int((overlaps >= shared).sum())
    return Estimate(float(values.mean()), low, high), (1 + reached) / (1 + len(overlaps))


def _jaccard(shared: float, sizes: int) -> float:
    """Jaccard of sets that hold ``sizes`` together, counted separately, and share ``shared``."""
    return shared / (sizes - shared) if sizes > shared else 0.0
