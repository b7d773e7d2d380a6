"""Small models are worked on by one thread, and the number of threads is put back."""

import pytest
import torch

from counterpoint.models import SMALL_MODEL, threads_for


@pytest.mark.parametrize(("num_params", "expected"), [(1_800_000, 1), (SMALL_MODEL, 2)])
def test_threads_inside_and_afterwards(num_params, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(num_params):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
