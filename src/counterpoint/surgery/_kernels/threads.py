"""Work shared between Python threads, each with one torch thread.

Torch's own threads would be woken anew for every chunk, which costs more than the chunk. Python threads run at the same
time as long as they are inside torch, so calls should be few and long: a thread that finds the interpreter taken sleeps
for longer than a short call takes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MAX_THREADS = 8
"""More threads than this would wait for each other's Python and for memory."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``function`` of every item, in order, on as many threads as torch may use."""
    threads = torch.get_num_threads()
    workers = min(len(items), threads, MAX_THREADS)
    torch.set_num_threads(1)
    try:
        if workers < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # of this thread, and of those that start later
