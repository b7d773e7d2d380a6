"""The exact top k of numbers that are never in memory together: a radix selection over tensors read one at a time.

Floats that are not negative are ordered as their bits are, read as integers. So two passes that count 65,536 bins each
find the k-th largest number exactly: one over the upper 16 bits, one over the lower 16 bits inside the bin where the
k-th lies. A third counts, tensor by tensor, the numbers that equal it, of which the first ones in order are taken.
Any number of counts shares the passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 1 << 16
CHUNK = 1 << 22
"""Numbers counted at once; what counting needs beside a tensor of numbers."""

Numbers = Callable[[str], Tensor]
"""A tensor's numbers by its name: float32, not negative; 0 is never chosen."""

Counted = Callable[[int, int], None]
"""Called with tensors done and in total."""


def _uncounted(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Cut:
    """The top ``count`` numbers: those with larger bits than ``bits``, and in each tensor the first ``ties`` equal."""

    count: int
    bits: int
    ties: Mapping[str, int]

    def mask(self, name: str, numbers: Tensor) -> Tensor:
        """Which numbers of the tensor ``name`` are among the top: bool, in its shape."""
        bits = _bits(numbers)
        mask = bits > self.bits
        if self.ties[name]:
            equal = (bits == self.bits).flatten()
            mask.view(-1)[equal.nonzero().flatten()[: self.ties[name]]] = True
        return mask


@dataclass(frozen=True)
class Ranking:
    """Numbers of many tensors in order of size, as counts: ``upper`` [65536] of their upper 16 bits, zeros left out."""

    names: tuple[str, ...]
    numbers: Numbers
    upper: Tensor

    @classmethod
    def of(cls, names: Sequence[str], numbers: Numbers, counted: Counted = _uncounted) -> "Ranking":
        """The ranking after its first pass."""
        upper = torch.zeros(BINS, dtype=torch.int64)
        for done, name in enumerate(names, 1):
            for bits in _chunks(numbers(name)):
                upper += torch.bincount(bits[bits > 0] >> 16, minlength=BINS)
            counted(done, len(names))
        return cls(tuple(names), numbers, upper)

    @property
    def num_candidates(self) -> int:
        """Numbers above 0."""
        return int(self.upper.sum())

    def cuts(self, counts: Sequence[int], counted: Counted = _uncounted) -> list[Cut]:
        """The top of every count, each from 1 to ``num_candidates``."""
        places = self._places(counts, counted)
        ties = self._ties([bits for bits, _ in places], [left for _, left in places], counted)
        return [Cut(count, bits, own) for count, (bits, _), own in zip(counts, places, ties, strict=True)]

    def largest(self, counts: Sequence[int]) -> list[float]:
        """For every count k, the k-th largest number."""
        bits = torch.tensor([bits for bits, _ in self._places(counts, _uncounted)], dtype=torch.int32)
        return [float(value) for value in bits.view(torch.float32)]

    def _places(self, counts: Sequence[int], counted: Counted) -> list[tuple[int, int]]:
        """Of every count k, the bits of the k-th largest number, and how many equal ones are among the k."""
        assert all(0 < count <= self.num_candidates for count in counts), "the caller checks the counts"
        bins = [_kth(self.upper, count) for count in counts]
        lower = self._lower({place for place, _ in bins}, counted)
        found = []
        for place, rest in bins:
            inside, equal = _kth(lower[place], rest)
            found.append(((place << 16) | inside, equal))
        return found

    def _lower(self, bins: set[int], counted: Counted) -> dict[int, Tensor]:
        """For each bin of the upper bits, counts of the lower bits of the numbers inside."""
        found = {place: torch.zeros(BINS, dtype=torch.int64) for place in bins}
        for done, name in enumerate(self.names, 1):
            for bits in _chunks(self.numbers(name)):
                upper = bits >> 16
                for place, counts in found.items():
                    counts += torch.bincount(bits[upper == place] & (BINS - 1), minlength=BINS)
            counted(done, len(self.names))
        return found

    def _ties(self, bits: Sequence[int], left: Sequence[int], counted: Counted) -> list[dict[str, int]]:
        """How many numbers equal to ``bits`` each tensor contributes, until ``left`` are taken, for every cut."""
        left = list(left)
        taken: list[dict[str, int]] = [{} for _ in bits]
        for done, name in enumerate(self.names, 1):
            equal = [0] * len(bits)
            for chunk in _chunks(self.numbers(name)):
                for i, wanted in enumerate(bits):
                    equal[i] += int((chunk == wanted).sum())
            for i, found in enumerate(equal):
                taken[i][name] = min(found, left[i])
                left[i] -= taken[i][name]
            counted(done, len(self.names))
        return taken


def _kth(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin in which the k-th largest lies, and how many of that bin are among the k."""
    above = counts.flip(0).cumsum(0).flip(0)  # in this bin or a higher one
    place = int((above >= k).nonzero()[-1])
    return place, k - int(above[place] - counts[place])


def _bits(numbers: Tensor) -> Tensor:
    assert numbers.dtype == torch.float32
    return numbers.contiguous().view(torch.int32)


def _chunks(numbers: Tensor) -> Sequence[Tensor]:
    return _bits(numbers).flatten().split(CHUNK)
