"""The processes of one launch: what they do together, and what only the first of them does.

``torchrun`` and ``accelerate launch`` start one process (rank) per device. All ranks train; only the first one writes
files and speaks. Alone, without a launcher, everything here is a plain function call.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from counterpoint.errors import CounterpointError

T = TypeVar("T")


def rank_of_environment() -> int:
    """This process's rank as its launcher set it, before anything is connected; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Launch:
    """This process among the ``size`` processes of a launch.

    >>> Launch(0, 1).share(lambda: 7)
    7
    """

    rank: int
    size: int

    @classmethod
    def join(cls) -> "Launch":
        """The launch that this process belongs to; every rank must call it, once training's arguments are made."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1)
        import torch.distributed as dist

        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def share(self, function: Callable[[], T]) -> T:
        """What ``function()`` gives on the first rank, on every rank; other ranks do not call it.

        They wait for it as long as ``training.ddp_timeout`` says.

        Raises:
            CounterpointError: on every rank, where the function raised one on the first.
        """
        if self.size == 1:
            return function()
        import torch.distributed as dist

        outcome: list[Any] = [None]
        if self.first:
            try:
                outcome = [(function(), None)]
            except CounterpointError as error:
                outcome = [(None, error)]
        dist.broadcast_object_list(outcome, src=0)
        value, raised = outcome[0]
        if raised is not None:
            raise raised
        return value

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in the order of ranks."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return any(self.gather(flag))

    def wait(self) -> None:
        """Returns when every rank has come here."""
        self.gather(None)
