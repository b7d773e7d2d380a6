"""The helper that runs distributed tests tells what each rank returned, and what went wrong where."""

import pytest
import torch
import torch.distributed as dist

from ranks_helper import run_ranks


def _sum_of_ranks(offset):
    value = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(value)
    return dist.get_rank(), value.item()


def _fail_on_one():
    if dist.get_rank() == 1:
        raise ValueError("only here")


@pytest.mark.parametrize("world", [2, 4])
def test_returns_what_every_rank_returned(world):
    assert run_ranks(_sum_of_ranks, world, 10) == [(r, sum(range(world)) + 10 * world) for r in range(world)]


def test_raises_the_error_of_the_rank_that_failed():
    with pytest.raises(ValueError, match="only here"):
        run_ranks(_fail_on_one, 2)
