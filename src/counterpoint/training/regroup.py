"""Cut a generation buffer into domain-pure micro-batches, without changing what any optimizer step sums.

Legend: B rows of a micro-batch, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch

Buffer = dict[str, Any]

DOMAIN_KEY = "domain_id"
"""Key of the ``[B]`` int64 tensor that names each row's domain in a generation buffer."""


def domain_of(micro_batch: Buffer) -> int:
    """The one domain id of a domain-pure micro-batch."""
    return int(micro_batch[DOMAIN_KEY][0])


def regroup(buffer: Sequence[Buffer], micro_batches_per_step: int) -> list[Buffer]:
    """The rows of ``buffer`` as equally many, equally large micro-batches of one domain each.

    Rows keep their order inside a domain. Micro-batches of a domain are spread over the optimizer steps that the buffer
    covers as evenly as their number allows, and lie next to each other inside a step, in the order of domain ids.

    Args:
        buffer: micro-batches of B rows each: ``[B, ...]`` tensors or lists of length B; 0-d tensors belong to all rows.
        micro_batches_per_step: micro-batches of one optimizer step (gradient accumulation).

    Raises:
        AssertionError: a domain's rows do not fill whole micro-batches; the quota sampler prevents this.
    """
    rows = _concatenate(buffer)
    num_rows = rows[DOMAIN_KEY].shape[0]
    size = num_rows // len(buffer)
    pure: list[tuple[float, int, torch.Tensor]] = []
    for domain_id in rows[DOMAIN_KEY].unique().tolist():
        index_B = (rows[DOMAIN_KEY] == domain_id).nonzero().squeeze(1)
        assert len(index_B) % size == 0, f"domain {domain_id}: {len(index_B)} rows do not fill micro-batches of {size}"
        chunks = index_B.split(size)
        pure += [((i + 0.5) / len(chunks), domain_id, chunk) for i, chunk in enumerate(chunks)]
    pure.sort(key=lambda item: item[:2])
    ordered = []
    for start in range(0, len(pure), micro_batches_per_step):
        ordered += sorted(pure[start : start + micro_batches_per_step], key=lambda item: item[1])
    return [_select(rows, index_B) for _, _, index_B in ordered]


def _concatenate(buffer: Sequence[Buffer]) -> Buffer:
    first = buffer[0]
    return {
        key: value
        if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0)
        else torch.cat([part[key] for part in buffer])
        if isinstance(value, torch.Tensor)
        else [item for part in buffer for item in part[key]]
        for key, value in first.items()
    }


def _select(rows: Buffer, index_B: torch.Tensor) -> Buffer:
    return {
        key: value
        if value is None or (isinstance(value, torch.Tensor) and value.ndim == 0)
        else value[index_B]
        if isinstance(value, torch.Tensor)
        else [value[i] for i in index_B.tolist()]
        for key, value in rows.items()
    }
