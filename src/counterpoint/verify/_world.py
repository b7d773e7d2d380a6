"""The ranks the suite runs on."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..errors import ConfigError, UnsupportedError, nearest

TIMEOUT = timedelta(seconds=120)
"""After which a collective that some rank does not reach fails."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    aside: Any = None
    """A group of all ranks apart from those that are tested, to talk about what went wrong there."""

    def mesh(self, **sizes: int) -> Any:
        """A device mesh of all ranks with these dimensions."""
        return init_device_mesh(self.device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))

    def gather(self, thing: Any, aside: bool = False) -> list[Any]:
        """Everybody's ``thing``, by rank; ``aside`` where some may be stuck in a collective until it times out."""
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, thing, group=self.aside if aside else None)
        return parts


@contextmanager
def open_world(device: str | None = None, dtype: str = "float32") -> Iterator[World]:
    """The ranks that ``torchrun`` started, or one process; raises ``UnsupportedError`` for a device that is not there.

    A process group that exists already is used as it is.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    place = _place(device, int(os.environ.get("LOCAL_RANK", "0")))
    torch.set_float32_matmul_precision("highest")
    # torch advises on the speed of meshes that are here to be exact
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mine = not dist.is_initialized()
    if mine:
        alone: dict[str, Any] = (
            {} if "WORLD_SIZE" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
        )
        dist.init_process_group("gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT, **alone)
    try:
        aside = dist.new_group(backend="gloo", timeout=3 * TIMEOUT)
        yield World(dist.get_rank(), dist.get_world_size(), place, DTYPES[dtype], aside)
    finally:
        if mine:
            dist.destroy_process_group()


def _place(device: str | None, local_rank: int) -> torch.device:
    kind, count = device or ("cuda" if torch.cuda.is_available() else "cpu"), torch.cuda.device_count()
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or local_rank >= count:
        raise UnsupportedError(
            f"The device {kind!r} is not there for local rank {local_rank}: {count} CUDA devices are visible. "
            "Start one process per GPU, or give --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
