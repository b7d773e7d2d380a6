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


def regroup(buffer: Sequence[Buffer], steps: Sequence[Sequence[int]] | None = None) -> list[Buffer]:
    """The rows of ``buffer`` as equally many, equally large micro-batches of one domain each.

    Rows keep their order inside a domain; micro-batches of a domain lie next to each other inside an optimizer step, in
    the order of domain ids.

    Args:
        buffer: micro-batches of B rows each: ``[B, ...]`` tensors or lists of length B; 0-d tensors belong to all rows.
        steps: for every optimizer step that the buffer covers, the number of micro-batches of each domain id; None for
            a buffer that lies inside one step.

    Raises:
        AssertionError: rows that do not fill whole micro-batches, or not the steps; the quota sampler prevents this.
    """
    rows = _concatenate(buffer)
    size = rows[DOMAIN_KEY].shape[0] // len(buffer)
    chunks = {domain_id: _chunks(rows, domain_id, size) for domain_id in rows[DOMAIN_KEY].unique().tolist()}
    if steps is None:
        return [_select(rows, index_B) for domain_id in sorted(chunks) for index_B in chunks[domain_id]]
    ordered = []
    for counts in steps:
        for domain_id, count in enumerate(counts):
            own = chunks.get(domain_id, [])
            assert len(own) >= count, f"domain {domain_id}: {len(own)} micro-batches left, a step needs {count}"
            ordered += own[:count]
            chunks[domain_id] = own[count:]
    assert not any(chunks.values()), "rows are left over after the last step"
    return [_select(rows, index_B) for index_B in ordered]


def _chunks(rows: Buffer, domain_id: int, size: int) -> list[torch.Tensor]:
    index_B = (rows[DOMAIN_KEY] == domain_id).nonzero().squeeze(1)
    assert len(index_B) % size == 0, f"domain {domain_id}: {len(index_B)} rows do not fill micro-batches of {size}"
    return list(index_B.split(size))


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
