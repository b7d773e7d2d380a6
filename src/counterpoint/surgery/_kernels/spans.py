"""What the kernels work on: blocks, spans and their cuts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

Blocks = Sequence[Sequence[Tensor | None]]
"""Per vector a list of flat contiguous blocks; ``None`` where a vector has none."""

LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Span:
    """Elements ``low`` to ``high`` of one block of every vector, all inside one unit."""

    block: int
    unit: int
    low: int
    high: int


Present = tuple[list[int], list[Tensor]]
"""The vectors that have a block, by number, and their blocks."""


def device_of(blocks_VB: Blocks) -> torch.device:
    """The device of the blocks; the CPU where there are none."""
    return next((block.device for blocks in blocks_VB for block in blocks if block is not None), torch.device("cpu"))


def by_device(blocks_VB: Blocks) -> list[list[list[Tensor | None]]]:
    """The blocks, one set for each device they lie on, in which those on other devices are missing."""
    devices = {block.device for blocks in blocks_VB for block in blocks if block is not None}
    return [
        [[block if block is not None and block.device == device else None for block in blocks] for blocks in blocks_VB]
        for device in sorted(devices, key=str)
    ]


def present(blocks_VB: Blocks) -> list[Present]:
    """For every block the vectors that have it."""
    found: list[Present] = []
    for blocks in zip(*blocks_VB, strict=True):
        numbers = [v for v, block in enumerate(blocks) if block is not None]
        found.append((numbers, [block for block in blocks if block is not None]))
    return found


def cut(spans: Sequence[Span], longest: int) -> list[Span]:
    """The spans in pieces of up to ``longest`` elements, in order."""
    return [
        span if span.high - span.low <= longest else Span(span.block, span.unit, low, min(low + longest, span.high))
        for span in spans
        for low in range(span.low, span.high, longest)
    ]


def work_dtype(parts: Sequence[Tensor]) -> torch.dtype:
    """What products and sums of these are formed in: float64 if one of them is, else float32."""
    return torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two blocks are one and the same."""
    return first is second or (first.data_ptr() == second.data_ptr() and first.dtype == second.dtype)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A host table on the device, without waiting for it."""
    pinned = table.pin_memory() if device.type == "cuda" and table.device.type == "cpu" else table
    return pinned.to(device, non_blocking=True)


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of one tensor or more, in order, on the first one's device."""
    return reduce(lambda so_far, part: so_far + part.to(so_far.device), parts)


def sum_units(units_S: Tensor, grams_SVV: Tensor, num_units: int) -> Tensor:
    """The sums over each unit's spans, [U, V, V]; in a fixed order, which ``index_add_`` keeps on processors alone."""
    gram_UVV = grams_SVV.new_zeros(num_units, *grams_SVV.shape[1:])
    if units_S.device.type == "cpu":
        gram_UVV.view(num_units, -1).index_add_(0, units_S, grams_SVV.flatten(1))
    else:
        gram_UVV.index_put_((units_S,), grams_SVV, accumulate=True)
    return gram_UVV
