"""The k-th largest magnitude among numbers that do not fit into memory, exactly, in two passes.

Non-negative float32 numbers are in the same order as their bits read as integers, so a histogram of the upper 16 bits
finds the bucket, and one of the lower 16 bits inside it the number.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_BINS = 1 << 16


def magnitude_threshold(edits: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The magnitude that the largest ``density`` of all N numbers reach: ceil(density * N) of them.

    More are kept only where several are exactly as large as the threshold.

    Args:
        edits: called twice, gives the tensors; they are taken as float32.
        density: share that is kept, above 0 and at most 1.
    """
    upper = torch.zeros(_BINS, dtype=torch.int64)
    for edit in edits():
        upper += torch.bincount(_bits(edit) >> 16, minlength=_BINS)
    wanted = math.ceil(density * int(upper.sum()))
    bucket, still = _kth_largest(upper, wanted)
    lower = torch.zeros(_BINS, dtype=torch.int64)
    for edit in edits():
        bits = _bits(edit)
        lower += torch.bincount(bits[bits >> 16 == bucket] & (_BINS - 1), minlength=_BINS)
    last, _ = _kth_largest(lower, still)
    return float(torch.tensor(bucket << 16 | last, dtype=torch.int32).view(torch.float32))


def _bits(edit: Tensor) -> Tensor:
    return edit.flatten().to(torch.float32).abs().view(torch.int32)


def _kth_largest(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest number, and which of the bin's own numbers it is, from its largest."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, k - above
