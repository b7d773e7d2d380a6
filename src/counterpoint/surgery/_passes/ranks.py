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
    meshes = list({id(p.device_mesh): p.device_mesh for p in parameters if is_dtensor(p)}.values())
    if not meshes:
        if group is None or dist.get_world_size(group) == 1:
            return None
        owns_P = [dist.get_rank(group) == 0] * len(parameters)
        return Ranks([group], parameters[0].device, owns_P, dist.get_world_size(group))
    largest = max(meshes, key=lambda mesh: mesh.size())
    members = largest.mesh.flatten().tolist()
    for mesh in meshes:
        if not set(mesh.mesh.flatten().tolist()) <= set(members):
            raise UnsupportedError(
                f"The parameters lie on device meshes of which none covers the others ({largest} and {mesh}), so their "
                "inner products have no common sum. Use one mesh, and sub-meshes of it."
            )
    device = torch.device(largest.device_type)
    if device.type != "cpu":
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    # One sum where the mesh holds all ranks, else one along each dimension.
    everyone = largest.ndim > 1 and largest.size() == dist.get_world_size()
    groups = [dist.group.WORLD] if everyone else [largest.get_group(i) for i in range(largest.ndim)]
    return Ranks(groups, device, [_in_my_shard_set(members[0], p) for p in parameters], largest.size())


def _in_my_shard_set(rank: int, parameter: nn.Parameter) -> bool:
    if not is_dtensor(parameter):
        return dist.get_rank() == rank
    mesh = parameter.device_mesh
    here = mesh.get_coordinate()
    assert here is not None, "a rank outside the mesh holds no part of the parameter"
    fixed = [slice(None) if is_split(p) else here[i] for i, p in enumerate(parameter.placements)]
    return rank in mesh.mesh[tuple(fixed)].flatten().tolist()


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
