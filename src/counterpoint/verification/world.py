"""The ranks the suite runs on, and what it needs of them: meshes, gathered things, the same bits everywhere."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..surgery._passes.shards import is_dtensor, is_split, local


@dataclass(frozen=True)
class World:
    """One rank's view of all ranks."""

    rank: int
    size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    domains: int = 3
    aside: Any = None
    """A group of all ranks apart from those that are tested, to talk about what went wrong there."""

    @property
    def on_cpu(self) -> bool:
        """Whether the ranks compute on CPUs."""
        return self.device.type == "cpu"

    def mesh(self, shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
        """The device mesh of all ranks with this shape; made once."""
        return _mesh(self.device.type, shape, names)

    def gather(self, thing: Any, aside: bool = False) -> list[Any]:
        """Everybody's ``thing``, by rank; ``aside`` where some may be stuck in a collective until it times out."""
        if self.size == 1:
            return [thing]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, thing, group=self.aside if aside else None)
        return parts


@functools.cache
def _mesh(device_type: str, shape: tuple[int, ...], names: tuple[str, ...]) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, shape, mesh_dim_names=names)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where ranks hold parts of it; a collective."""
    if not is_dtensor(tensor):
        return tensor
    # offloaded parts are gathered where the mesh's collectives are
    return tensor.to(tensor.device_mesh.device_type).full_tensor()


def copies_that_differ(tensors: Mapping[str, Tensor], world: World) -> list[str]:
    """The names of tensors of which two ranks hold the same part in different bits."""
    mine = {(name, _part(tensor)): _digest(local(tensor)) for name, tensor in tensors.items()}
    seen: dict[tuple[str, str], str] = {}
    different = set()
    for theirs in world.gather(mine):
        for key, digest in theirs.items():
            if seen.setdefault(key, digest) != digest:
                different.add(key[0])
    return sorted(different)


def _part(tensor: Tensor) -> str:
    """Which part of the tensor this rank holds: its place along the mesh dimensions that cut it."""
    if not is_dtensor(tensor):
        return "all"
    here = tensor.device_mesh.get_coordinate()
    return str([here[i] if is_split(placement) else "all" for i, placement in enumerate(tensor.placements)])


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().view(-1).cpu()
    return hashlib.blake2b(flat.view(torch.uint8).numpy().tobytes(), digest_size=16).hexdigest()
