"""What the kernels work on: blocks, spans and their cuts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Blocks = Sequence[Sequence[Tensor | None]]
"""Per vector a list of flat contiguous blocks; ``None`` where a vector has none."""


@dataclass(frozen=True, slots=True)
class Span:
    """Elements ``low`` to ``high`` of one block of every vector, all inside one unit."""

    block: int
    unit: int
    low: int
    high: int


Present = tuple[list[int], list[Tensor]]
"""The vectors that have a block, by number, and their blocks."""


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
    return first is second or (first.data_ptr() == second.data_ptr() and first.dtype == second.dtype)


def to_device(table: Tensor, device: torch.device) -> Tensor:
    """A host table on the device, without waiting for it."""
    pinned = table.pin_memory() if device.type == "cuda" and table.device.type == "cpu" else table
    return pinned.to(device, non_blocking=True)
