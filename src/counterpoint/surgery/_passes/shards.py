"""What this rank holds of each parameter: all of it, or the local part of a DTensor."""

from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor


def is_dtensor(tensor: Tensor) -> TypeGuard[Any]:
    """Whether the tensor is a DTensor; the class itself is not imported for one look."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of the tensor that this rank holds; in-place changes of it change the tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def like_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient placed as its parameter; a partial sum over ranks, which is no gradient yet, is summed up."""
    if is_dtensor(gradient) and is_dtensor(parameter) and gradient.placements != parameter.placements:
        return gradient.redistribute(parameter.device_mesh, parameter.placements)
    return gradient


def is_split(placement: Any) -> bool:
    """Whether a mesh dimension with this placement cuts the tensor, so that each rank along it holds another part."""
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"


@dataclass(frozen=True)
class Rows:
    """A stretch of a tensor's dimension 0: rows ``first`` to ``last`` (not included) of ``total``."""

    first: int
    last: int
    total: int


def local_rows(parameter: Tensor) -> Rows:
    """Which rows along dimension 0 this rank holds. They lie next to each other under every placement."""
    total = parameter.shape[0] if parameter.ndim else 1
    if not is_dtensor(parameter) or not parameter.ndim:
        return Rows(0, total, total)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return Rows(offset[0], offset[0] + shape[0], total)
