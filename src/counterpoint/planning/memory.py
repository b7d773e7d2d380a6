"""What one rank holds, in bytes: training itself, and what gradient surgery needs besides.

Pure functions of counts. N ranks; P elements of trained parameters; V vectors: one gradient per domain, or two (its
halves) for weightings that measure noise. Activations, and the layers that a back end gathers for a moment, are not
counted here.
"""

import math
from collections.abc import Mapping
from typing import Literal

from .shapes import Shape

Buffers = Literal["device", "bfloat16", "cpu"]
BUFFERS: tuple[Buffers, ...] = ("device", "bfloat16", "cpu")
"""Where the gradients of the domains wait for the last one."""

ITEM_SIZES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one element by the name of its type."""

MOMENTS = 2
"""Tensors that AdamW keeps per weight."""


def num_vectors(domains: int, uses_halves: bool, micro_batches: int) -> int:
    """Number of gradients V kept apart in a step: one per domain, or two where the weighting splits each in halves.

    A half needs a micro-batch of its own, so there are no more vectors than micro-batches.
    """
    return max(domains, min(2 * domains, micro_batches)) if uses_halves else domains


def local_elements(shape: Shape, shards: int) -> int:
    """Elements of a parameter on the rank that holds most of it, sharded along dimension 0 over ``shards`` ranks.

    ``fully_shard`` gives each rank ``ceil(rows / shards)`` whole rows, and the last ranks what is left. So a LoRA
    factor of 16 rows over 64 ranks is one row on each of 16 ranks and nothing on the others.
    """
    if not shape:
        return 1
    return math.ceil(shape[0] / shards) * math.prod(shape[1:])


def local_total(shapes: Mapping[str, Shape], shards: int) -> int:
    """Elements of all parameters on the fullest rank (the first: it never has less of a parameter than another)."""
    return sum(local_elements(shape, shards) for shape in shapes.values())


def training_bytes(elements: int, item_size: int) -> dict[str, int]:
    """Bytes of weights, gradient and AdamW's moments for ``elements`` trained elements of ``item_size`` bytes."""
    size = elements * item_size
    return {"weights": size, "gradient": size, "moments": MOMENTS * size}


def surgery_bytes(elements: int, vectors: int, buffers: Buffers, item_size: int, longest: int) -> tuple[int, int]:
    """Bytes that surgery adds on a rank that holds ``elements`` of every gradient: (on the device, in host memory).

    V - 1 gradients wait while the last one is in ``.grad``; the weighted sum is written into memory that is there.
    From host memory they come back a stretch of parameters at a time, the next stretch while one is worked on; a
    stretch is no longer than the parameter of which this rank holds most, ``longest`` elements.
    """
    if buffers == "cpu":
        return 2 * (vectors - 1) * longest * item_size, (vectors - 1) * elements * item_size
    return (vectors - 1) * elements * waiting_size(buffers, item_size), 0


def averaging_bytes(
    elements: int, vectors: int, buffers: Buffers, item_size: int, ranks: int, bucket: int
) -> tuple[int, int]:
    """The same where whole local gradients are averaged over ``ranks`` at the end of the step, as under DDP.

    Gradients are packed into a bucket of ``bucket`` elements and sent, so that every vector in turn becomes a shard of
    1/N. Gradients on the device make room at least as fast as shards fill it, so the most is held at the beginning;
    those in host memory come back a bucket at a time, and the most is held at the end.
    """
    if buffers == "cpu":
        shards = (vectors - 1) * math.ceil(elements / ranks)
        return (shards + 2 * bucket) * item_size, (vectors - 1) * elements * item_size
    return (vectors - 1) * elements * waiting_size(buffers, item_size) + bucket * item_size, 0


def waiting_size(buffers: Buffers, item_size: int) -> int:
    """Bytes of one element of a gradient that waits."""
    return min(2, item_size) if buffers == "bfloat16" else item_size


def gram_bytes(units: int, vectors: int) -> int:
    """Bytes of all inner products: U x V x V float64."""
    return units * vectors * vectors * 8


def message_bytes(units: int, vectors: int) -> int:
    """Bytes that the one all-reduce of inner products sums: one triangle of every unit's, and four check words.

    There is room for eight vectors at least, so that ranks with different numbers of them still match.
    """
    width = max(8, 1 << (vectors - 1).bit_length())
    return (units * width * (width + 1) // 2 + 4) * 8
