"""How many threads torch should use: one for a small model, whose operations are too short to wake others for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL_MODEL = 20_000_000
"""Parameters below which one thread is faster: on two cores two threads took twice as long for the pocket model."""


@contextmanager
def threads_for(num_params: int) -> Iterator[None]:
    """One thread for a small model inside the context, as many as before for any other; put back afterwards."""
    before = torch.get_num_threads()
    if num_params < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
