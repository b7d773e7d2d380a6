"""Cut a generation buffer into domain-pure micro-batches, without changing what any optimizer step sums.

Legend: B rows of a micro-batch, T tokens.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch

Buffer = dict[str, Any]

DOMAIN_KEY = "domain_id"
"""Key of the ``[B]`` int64 tensor that names each row's domain in a generation buffer."""

PROMPT_KEY = "prompt_id"
"""Key of the ``[B]`` int64 tensor that is equal for completions of one prompt, and for no others of the buffer."""


def domain_of(micro_batch: Buffer) -> int:
    """The one domain id of a domain-pure micro-batch."""
    return int(micro_batch[DOMAIN_KEY][0])


def regroup(
    buffer: Sequence[Buffer], steps: Sequence[Sequence[int]] | None = None, *, halves: bool = False
) -> list[Buffer]:
    """The rows of ``buffer`` as equally many, equally large micro-batches of one domain each.

    Rows keep their order inside a domain; micro-batches of a domain lie next to each other inside an optimizer step, in
    the order of domain ids.

    Args:
        buffer: micro-batches of B rows each: ``[B, ...]`` tensors or lists of length B; 0-d tensors belong to all rows.
        steps: for every optimizer step that the buffer covers, the number of micro-batches of each domain id; None for
            a buffer that lies inside one step.
        halves: order a domain's rows by prompt, so that its micro-batches at even and at odd places of a step hold
            different prompts (one prompt lies in both where a half is no whole number of them).

    Raises:
        AssertionError: rows that do not fill whole micro-batches, or not the steps; the quota sampler prevents this.
    """
    rows = _concatenate(buffer)
    size = rows[DOMAIN_KEY].shape[0] // len(buffer)
    chunks = {domain_id: _chunks(rows, domain_id, size, halves) for domain_id in rows[DOMAIN_KEY].unique().tolist()}
    arrange = _in_halves if halves else list
    if steps is None:
        return [_select(rows, index_B) for domain_id in sorted(chunks) for index_B in arrange(chunks[domain_id])]
    ordered = []
    for counts in steps:
        for domain_id, count in enumerate(counts):
            own = chunks.get(domain_id, [])
            assert len(own) >= count, f"domain {domain_id}: {len(own)} micro-batches left, a step needs {count}"
            ordered += arrange(own[:count])
            chunks[domain_id] = own[count:]
    assert not any(chunks.values()), "rows are left over after the last step"
    return [_select(rows, index_B) for index_B in ordered]


def _chunks(rows: Buffer, domain_id: int, size: int, by_prompt: bool) -> list[torch.Tensor]:
    index_B = (rows[DOMAIN_KEY] == domain_id).nonzero().squeeze(1)
    if by_prompt:
        index_B = index_B[rows[PROMPT_KEY][index_B].argsort(stable=True)]
    assert len(index_B) % size == 0, f"domain {domain_id}: {len(index_B)} rows do not fill micro-batches of {size}"
    return list(index_B.split(size))


def _in_halves(chunks: list[torch.Tensor]) -> list[torch.Tensor]:
    """The first half of ``chunks`` at even places, the second at odd ones."""
    middle = (len(chunks) + 1) // 2
    return [chunk for pair in zip_longest(chunks[:middle], chunks[middle:]) for chunk in pair if chunk is not None]


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
