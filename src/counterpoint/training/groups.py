"""Groups of completions of one prompt, where domains have groups of different sizes.

Rows lie as the sampler gives them: whole groups, one after another, each of one domain.

Legend: B rows of a generation batch, D domains.
"""

from collections.abc import Callable

import torch
from trl.trainer.utils import nanstd as trl_nanstd

from counterpoint.training.batches import EPSILON


def by_size(
    function: Callable[[torch.Tensor, int], torch.Tensor], values_B: torch.Tensor, size_B: torch.Tensor
) -> torch.Tensor:
    """``function(values, size)`` of the rows of each size of group, put together ``[B]``."""
    found: torch.Tensor | None = None
    for size in size_B.unique().tolist():
        own_B = size_B == size
        part = function(values_B[own_B], size)
        found = part.new_zeros(len(values_B)) if found is None else found
        found[own_B] = part
    assert found is not None
    return found


def group_ids(size_B: torch.Tensor) -> torch.Tensor:
    """The number of each row's group ``[B]``, from 0."""
    first_B = by_size(lambda rows, size: torch.arange(len(rows), device=rows.device) % size == 0, size_B, size_B)
    return first_B.cumsum(dim=0) - 1


def advantages(total_B: torch.Tensor, size: int, *, scaled: bool) -> torch.Tensor:
    """TRL's advantages inside groups of one size, 0 where nothing was scored; ``scaled`` divides by the group's
    standard deviation."""
    groups = total_B.view(-1, size)
    centred = groups - torch.nanmean(groups, dim=1, keepdim=True)
    if scaled:
        centred = centred / (trl_nanstd(groups, dim=1).unsqueeze(1) + EPSILON)
    return centred.flatten().nan_to_num(nan=0.0)
