"""The ranks that train one model together: whose inner products count, and the one small all-reduce of a step.

An inner product is summed over the mesh dimensions in which a parameter is cut, and over no other. One rule says so
for every back end: a rank contributes for a parameter if the first rank belongs to its shard set, the ranks that hold
one copy of the parameter between them. All other ranks hold further copies and contribute zero. One sum over all ranks
then gives each inner product once, and gives every rank the same bits.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import RankMismatchError, UnsupportedError
from .shards import is_dtensor, is_split

_NUM_WORDS, _WORD_BITS = 2, 20
"""Check words, and bits of one: its square, summed over thousands of ranks, is still a whole number in float64."""

_MESSAGE_VECTORS = 8
"""Vectors that a message has room for, whatever their number; more take the next power of two."""


class Ranks:
    """The ranks of one training, seen from one of them.

    ``owns_P[p]``: whether this rank's part of parameter p counts in sums over ranks.
    """

    def __init__(self, groups: Sequence[Any], device: torch.device, owns_P: list[bool], size: int) -> None:
        self.owns_P = owns_P
        self.size = size
        self._groups = groups
        self._device = device

    def sum(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all ranks, on their device; every rank gets the same bits."""
        total = values.to(self._device)
        for group in self._groups:
            dist.all_reduce(total, group=group)
        return total

    def gather(self, thing: object) -> list[Any]:
        """Everybody's ``thing``; slow, for error messages."""
        gathered: list[Any] = [thing]
        for group in self._groups:
            parts: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(parts, gathered, group=group)
            gathered = [item for part in parts for item in part]
        return gathered


def find_ranks(parameters: Sequence[nn.Parameter], group: Any = None) -> Ranks | None:
    """The ranks that hold these parameters: a DTensor's mesh, or ``group`` for whole copies; None for one process.

    Raises ``UnsupportedError`` for meshes of which none covers the others.
    """
    meshes = _meshes(parameters)
    if not meshes:
        return None if group is None or dist.get_world_size(group) == 1 else _replicas(parameters, group)
    largest = max(meshes, key=lambda mesh: mesh.size())
    members = set(largest.mesh.flatten().tolist())
    for mesh in meshes:
        if not set(mesh.mesh.flatten().tolist()) <= members:
            raise UnsupportedError(
                f"The parameters lie on device meshes of which none covers the others ({largest} and {mesh}), so their "
                "inner products have no common sum. Use one mesh, and sub-meshes of it."
            )
    first = int(largest.mesh.flatten()[0])
    owns_P = [_first_holds_my_copy(parameter, first) for parameter in parameters]
    return Ranks(_mesh_groups(largest), _device(largest), owns_P, largest.size())


def _replicas(parameters: Sequence[nn.Parameter], group: Any) -> Ranks:
    first = dist.get_rank(group) == 0
    return Ranks([group], parameters[0].device, [first] * len(parameters), dist.get_world_size(group))


def _meshes(parameters: Sequence[nn.Parameter]) -> list[Any]:
    found: list[Any] = []
    for parameter in parameters:
        if is_dtensor(parameter) and not any(parameter.device_mesh is mesh for mesh in found):
            found.append(parameter.device_mesh)
    return found


def _first_holds_my_copy(parameter: nn.Parameter, first: int) -> bool:
    """Whether the rank ``first`` is in this rank's shard set of the parameter."""
    if not is_dtensor(parameter):
        return dist.get_rank() == first
    mesh = parameter.device_mesh
    here = mesh.get_coordinate()
    assert here is not None, "a rank outside the mesh holds no part of the parameter"
    fixed = [slice(None) if is_split(p) else here[i] for i, p in enumerate(parameter.placements)]
    return first in mesh.mesh[tuple(fixed)].flatten().tolist()


def _mesh_groups(mesh: Any) -> list[Any]:
    """One group over all ranks of the mesh where there is one, else the groups of its dimensions, one by one."""
    if mesh.ndim > 1 and mesh.size() == dist.get_world_size():
        return [dist.group.WORLD]
    return [mesh.get_group(i) for i in range(mesh.ndim)]


def _device(mesh: Any) -> torch.device:
    if mesh.device_type == "cpu":
        return torch.device("cpu")
    return torch.device(mesh.device_type, torch.get_device_module(mesh.device_type).current_device())


def sum_over_ranks(gram_UVV: Tensor, more: Tensor, ranks: Ranks | None) -> tuple[Tensor, Tensor]:
    """The Grams [U, V, V] and ``more`` [N], float64 on the CPU, summed over ranks: one all-reduce, one transfer.

    The message has the same size on ranks with different numbers of vectors, so that they can tell each other and no
    rank waits.
    """
    if ranks is None:
        return gram_UVV.cpu(), more
    num_units, num_vectors = gram_UVV.shape[:2]
    upper = torch.triu_indices(num_vectors, num_vectors, device=gram_UVV.device)
    width = max(_MESSAGE_VECTORS, 1 << (num_vectors - 1).bit_length())
    message = gram_UVV.new_zeros(num_units, width * (width + 1) // 2)
    message[:, : upper.shape[1]] = gram_UVV[:, upper[0], upper[1]]
    total = ranks.sum(torch.cat([message.flatten(), more.to(message)])).cpu()
    found = total[: message.numel()].view(num_units, -1)[:, : upper.shape[1]]
    upper = upper.cpu()
    gram_UVV = found.new_empty(num_units, num_vectors, num_vectors)
    gram_UVV[:, upper[0], upper[1]] = found
    gram_UVV[:, upper[1], upper[0]] = found
    return gram_UVV, total[message.numel() :]


def check_words(collected: Sequence[str]) -> Tensor:
    """Numbers, float64, by whose sum over ranks one sees whether all collected the same domains in the same order."""
    digest = hashlib.blake2b("/".join(f"{len(name)}:{name}" for name in collected).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    words = [number >> (i * _WORD_BITS) & ((1 << _WORD_BITS) - 1) for i in range(_NUM_WORDS)]
    return torch.tensor([power for word in words for power in (word, word * word)], dtype=torch.float64)


def check_agreement(sums: Tensor, ranks: Ranks, collected: Sequence[str], step: int) -> None:
    """Raises ``RankMismatchError`` on all ranks, with what each collected, if the summed check words tell a difference.

    Words w of n ranks are all equal exactly where n * sum(w^2) = sum(w)^2.
    """
    total, squares = sums[0::2], sums[1::2]
    if torch.equal(ranks.size * squares, total * total):
        return
    lists = ranks.gather(list(collected))
    shown = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in enumerate(lists[:4]))
    raise RankMismatchError(
        f"At step {step} the ranks collected different domains, or in a different order ({shown}"
        f"{'; ...' if len(lists) > 4 else ''}). Gradients are averaged over ranks in every backward, so domains would "
        "be mixed. Give all ranks micro-batches of the same domain at the same time, as DomainGRPOTrainer does; under "
        "DDP you can also run backward under no_sync() and give the Surgeon average_over=group."
    )
