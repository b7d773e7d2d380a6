"""Where the units lie in the flat blocks of memory that a rank works on."""

from collections.abc import Sequence

from torch import Tensor, nn

from .._kernels import Span
from .shards import local, local_rows


def own_spans(parameters: Sequence[nn.Parameter], counts: Sequence[int]) -> list[Span]:
    """The spans where every parameter is a block of its own: what this rank holds of it, cut into its units.

    ``counts`` holds the number of units of each parameter, equal slices along dimension 0.
    """
    found: list[Span] = []
    first_unit = 0
    for block, (parameter, count) in enumerate(zip(parameters, counts, strict=True)):
        if count == 1:
            found.append(Span(block, first_unit, 0, local(parameter).numel()))
        else:
            found += _cut(parameter, count, block, first_unit)
        first_unit += count
    return [span for span in found if span.high > span.low]


def _cut(parameter: nn.Parameter, count: int, block: int, first_unit: int) -> list[Span]:
    rows = local_rows(parameter)
    per_row = local(parameter).numel() // max(1, rows.last - rows.first)
    per_unit = rows.total // count
    found = []
    for number in range(rows.first // per_unit, -(-rows.last // per_unit)):
        low = max(number * per_unit, rows.first) - rows.first
        high = min((number + 1) * per_unit, rows.last) - rows.first
        found.append(Span(block, first_unit + number, low * per_row, high * per_row))
    return found


def shard_spans(
    sizes: Sequence[int], counts: Sequence[int], first_units: Sequence[int], block: int, low: int, high: int
) -> list[Span]:
    """The spans of elements ``low`` to ``high`` of parameters laid end to end, as a block that begins at ``low``.

    ``sizes`` and ``counts`` hold the elements and units of each of these parameters, ``first_units`` the number of the
    first unit of each.
    """
    found: list[Span] = []
    start = 0
    for size, count, first_unit in zip(sizes, counts, first_units, strict=True):
        piece = size // count
        for number in range(count):
            begin, end = max(start + number * piece, low), min(start + (number + 1) * piece, high)
            if begin < end:
                found.append(Span(block, first_unit + number, begin - low, end - low))
        start += size
    return found


def flat(tensor: Tensor) -> Tensor:
    """What this rank holds of a contiguous tensor, as a vector."""
    return local(tensor).view(-1)
