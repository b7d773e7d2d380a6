"""The processes of one launch: what they do together, and what only the first of them does.

``torchrun`` and ``accelerate launch`` start one process (rank) per device. All ranks train; only the first one writes
files and speaks. Alone, without a launcher, everything here is a plain function call.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from counterpoint.errors import CounterpointError

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""How long ranks wait for the first one; a launcher ends the others when one of them fails, so none waits in vain."""


def rank_of_environment() -> int:
    """This process's rank as its launcher set it, before anything is connected; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Launch:
    """This process among the ``size`` processes of a launch.

    >>> Launch.alone().share(lambda: 7)
    7
    """

    rank: int
    size: int
    group: Any = None
    """A gloo process group over all ranks, for words and flags; gradients travel elsewhere."""

    @classmethod
    def alone(cls) -> "Launch":
        """One process."""
        return cls(0, 1)

    @classmethod
    def join(cls) -> "Launch":
        """The launch that this process belongs to. Every rank must call it.

        The process group of training must exist where there are several ranks (``TrainingArguments`` makes it).
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls.alone()
        import torch.distributed as dist

        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def share(self, function: Callable[[], T]) -> T:
        """What ``function()`` gives on the first rank, on every rank; other ranks do not call it.

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
        dist.broadcast_object_list(outcome, src=0, group=self.group)
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
        dist.all_gather_object(values, value, group=self.group)
        return values

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        if self.size == 1:
            return flag
        import torch
        import torch.distributed as dist

        total = torch.tensor([int(flag)])
        dist.all_reduce(total, group=self.group)
        return bool(total.item())

    def wait(self) -> None:
        """Returns when every rank has come here."""
        self.any(False)
