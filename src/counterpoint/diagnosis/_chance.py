"""The chance levels, intervals and corrections that stand beside every number of a diagnosis. Pure functions."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from counterpoint.stats import Estimate


def pairs_of(count: int) -> list[tuple[int, int]]:
    """``(0, 1), (0, 2), (1, 2), ...``: every pair once, the first one varying slowest: the order of every Q axis."""
    return list(itertools.combinations(range(count), 2))


def jaccard(first_N: Tensor, second_N: Tensor) -> float:
    """``|A and B| / |A or B|`` of two sets given as bool vectors; 0 where both are empty."""
    union = int((first_N | second_N).sum())
    return int((first_N & second_N).sum()) / union if union else 0.0


def jaccard_by_chance(size_a: int, size_b: int, total: int) -> float:
    """The Jaccard of two random sets of these sizes at their expected overlap ``size_a * size_b / total``.

    For two sets of a tenth of all it is 0.0526.
    """
    overlap = size_a * size_b / total
    union = size_a + size_b - overlap
    return overlap / union if union else 0.0


def overlap_p_value(overlap: int, size_a: int, size_b: int, total: int) -> float:
    """Chance that two random sets of these sizes share at least ``overlap``: the exact hypergeometric tail."""
    highest = min(size_a, size_b)
    lowest = max(overlap, 0, size_a + size_b - total)
    if lowest > highest:
        return 0.0
    shared = torch.arange(lowest, highest + 1, dtype=torch.float64)
    rest = total - size_a
    logs = (
        _log_choose(size_a, shared)
        + _log_choose(rest, size_b - shared)
        - _log_choose(total, torch.tensor(float(size_b)))
    )
    return float(torch.logsumexp(logs, 0).exp().clamp(max=1))


def _log_choose(n: int, k: Tensor) -> Tensor:
    n_ = torch.tensor(float(n), dtype=torch.float64)
    k = k.double()
    return torch.lgamma(n_ + 1) - torch.lgamma(k + 1) - torch.lgamma(n_ - k + 1)


def bootstrap(
    values: Tensor, statistic: Callable[[Tensor], Tensor], draws: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The statistic of ``values`` [N, ...] with its percentile interval over resampled rows.

    ``statistic`` maps resamples [R, N, ...] to [R]. The random stream is private.
    """
    generator = torch.Generator().manual_seed(seed)
    index_RN = torch.randint(len(values), (draws, len(values)), generator=generator)
    found = statistic(values[index_RN]).double()
    tail = (1 - confidence) / 2
    low, high = torch.quantile(found, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Estimate(float(statistic(values.unsqueeze(0))[0]), low, high)
