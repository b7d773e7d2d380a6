"""The exact top k of scores that are never in memory together: a radix selection over tensors read one at a time.

Floats that are not negative are ordered as their bits are, read as integers. So two passes that count 65,536 bins each
find the k-th largest score exactly: one over the upper 16 bits, one over the lower 16 bits inside the bin where the
k-th lies. A third counts, tensor by tensor, the scores that equal it, of which the first ones in model order are taken.
Any number of budgets shares the passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 1 << 16
CHUNK = 1 << 24
"""Scores counted at once; what counting needs beside a tensor of scores."""

Scores = Callable[[str], Tensor]
"""A tensor's scores by its name, float32 and not negative; 0 means that the weight cannot be chosen."""

Watch = Callable[[int, int], None]
"""Called with tensors done and in total."""


@dataclass(frozen=True)
class Cut:
    """The top ``count`` scores: those with larger bits than ``bits``, and in each tensor the first ``ties`` equal."""

    count: int
    bits: int
    ties: Mapping[str, int]

    def mask(self, name: str, scores: Tensor) -> Tensor:
        """Which weights of the tensor ``name`` are among the top: bool, shaped as its scores."""
        bits = _bits(scores)
        mask = bits > self.bits
        if self.ties[name]:
            equal = bits == self.bits
            mask |= equal & (equal.flatten().cumsum(0).view(equal.shape) <= self.ties[name])
        return mask


@dataclass(frozen=True)
class Ranking:
    """Scores of many tensors in order of size, as counts: ``upper`` [65536] of their upper 16 bits, zeros left out."""

    names: tuple[str, ...]
    scores: Scores
    upper: Tensor

    @classmethod
    def of(cls, names: Sequence[str], scores: Scores, watch: Watch = lambda done, total: None) -> "Ranking":
        """The ranking after its first pass."""
        upper = torch.zeros(BINS, dtype=torch.int64)
        for done, name in enumerate(names, 1):
            for bits in _chunks(scores(name)):
                upper += torch.bincount(bits[bits > 0] >> 16, minlength=BINS)
            watch(done, len(names))
        return cls(tuple(names), scores, upper)

    @property
    def num_candidates(self) -> int:
        """Weights that can be chosen."""
        return int(self.upper.sum())

    def cuts(self, counts: Sequence[int], watch: Watch = lambda done, total: None) -> list[Cut]:
        """The top of every count, each from 1 to ``num_candidates``."""
        assert all(0 < count <= self.num_candidates for count in counts), "the caller checks the counts"
        bins = [_kth(self.upper, count) for count in counts]
        lower = self._lower({place for place, _ in bins}, watch)
        bits, left = [], []
        for place, rest in bins:
            inside, equal = _kth(lower[place], rest)
            bits.append((place << 16) | inside)
            left.append(equal)
        ties = self._ties(bits, left, watch)
        return [Cut(*parts) for parts in zip(counts, bits, ties, strict=True)]

    def _lower(self, bins: set[int], watch: Watch) -> dict[int, Tensor]:
        """For each bin of the upper bits, counts of the lower bits of the scores inside."""
        found = {place: torch.zeros(BINS, dtype=torch.int64) for place in bins}
        for done, name in enumerate(self.names, 1):
            for bits in _chunks(self.scores(name)):
                upper = bits >> 16
                for place, counts in found.items():
                    counts += torch.bincount(bits[upper == place] & (BINS - 1), minlength=BINS)
            watch(done, len(self.names))
        return found

    def _ties(self, bits: Sequence[int], left: Sequence[int], watch: Watch) -> list[dict[str, int]]:
        """How many scores equal to ``bits`` each tensor contributes, until ``left`` are taken, for every cut."""
        left = list(left)
        taken: list[dict[str, int]] = [{} for _ in bits]
        for done, name in enumerate(self.names, 1):
            equal = [0] * len(bits)
            for chunk in _chunks(self.scores(name)):
                for i, wanted in enumerate(bits):
                    equal[i] += int((chunk == wanted).sum())
            for i, found in enumerate(equal):
                taken[i][name] = min(found, left[i])
                left[i] -= taken[i][name]
            watch(done, len(self.names))
        return taken


def _kth(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest lies, and how many of that bin are among the k."""
    above = counts.flip(0).cumsum(0).flip(0)  # in this bin or a higher one
    place = int((above >= k).nonzero()[-1])
    return place, k - int(above[place] - counts[place])


def _bits(scores: Tensor) -> Tensor:
    assert scores.dtype == torch.float32
    return scores.view(torch.int32)


def _chunks(scores: Tensor) -> Sequence[Tensor]:
    return _bits(scores.contiguous()).flatten().split(CHUNK)
