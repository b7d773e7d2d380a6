"""What this rank holds of each parameter (all of it, or the local part of a DTensor), and where units lie in that."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from torch import Tensor, nn

from ...errors import UnsupportedError
from .._kernels import Span
from ..refusals import DEEPSPEED, FSDP1


def is_dtensor(tensor: Tensor) -> TypeGuard[Any]:
    # The class itself is not imported for one look.
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of the tensor that this rank holds; in-place changes of it change the tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def is_split(placement: Any) -> bool:
    """Whether a mesh dimension with this placement cuts the tensor, so that each rank along it holds another part."""
    return bool(placement.is_shard()) or type(placement).__name__ == "_StridedShard"


def like_parameter(gradient: Tensor, parameter: Tensor) -> Tensor:
    """The gradient placed as its parameter; a partial sum over ranks, which is no gradient yet, is summed up."""
    if is_dtensor(gradient) and is_dtensor(parameter) and gradient.placements != parameter.placements:
        return gradient.redistribute(parameter.device_mesh, parameter.placements)
    return gradient


def as_gradient(mine: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a gradient, a vector, in the parameter's shape and placement."""
    if not is_dtensor(parameter):
        return mine.view(parameter.shape)
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        mine.view(local(parameter).shape),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def held_spans(parameters: Sequence[nn.Parameter], counts: Sequence[int]) -> list[list[Span]]:
    """For each parameter the spans of what this rank holds of it, as a block of its own.

    ``counts`` holds the number of units of each parameter, equal slices along dimension 0.
    """
    found: list[list[Span]] = []
    for block, (parameter, count, unit) in enumerate(zip(parameters, counts, first_units(counts), strict=True)):
        size = local(parameter).numel()
        if count == 1:
            found.append([Span(block, unit, 0, size)] if size else [])
            continue
        first, last, total = _local_rows(parameter)
        per_row = size // max(1, last - first)
        found.append(unit_spans([(total * per_row, count, unit)], block, first * per_row, last * per_row))
    return found


def first_units(counts: Sequence[int]) -> list[int]:
    """The number of each parameter's first unit."""
    return [0, *itertools.accumulate(counts)][: len(counts)]


def unit_spans(pieces: Iterable[tuple[int, int, int]], block: int, low: int, high: int) -> list[Span]:
    """The spans of elements ``low`` to ``high`` of parameters laid end to end, as a block that begins at ``low``.

    Each piece is one parameter: its elements, its number of units, and the number of the first of them.
    """
    found: list[Span] = []
    start = 0
    for size, count, unit in pieces:
        piece = size // count
        for number in range(count):
            begin, end = max(start + number * piece, low), min(start + (number + 1) * piece, high)
            if begin < end:
                found.append(Span(block, unit + number, begin - low, end - low))
        start += size
    return found


def _local_rows(parameter: Tensor) -> tuple[int, int, int]:
    """The first and last (not included) row along dimension 0 that this rank holds, and the number of all rows.

    Rows of one rank lie next to each other under every placement.
    """
    total = parameter.shape[0] if parameter.ndim else 1
    if not is_dtensor(parameter) or not parameter.ndim:
        return 0, total, total
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return offset[0], offset[0] + shape[0], total


def refuse_inexact(model: object, named: Mapping[str, nn.Parameter]) -> None:
    """Raises ``UnsupportedError`` for parameters whose ``.grad`` is not the gradient that the optimizer will use."""
    # By name: DeepSpeed is not installed with counterpoint, and asking for its class would import it.
    deepspeed = any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)
    if deepspeed or any(hasattr(parameter, "ds_id") for parameter in named.values()):
        raise UnsupportedError(DEEPSPEED)
    # torch's own mark, also on the original parameters that FSDP1 shows with use_orig_params=True. Inner products would
    # be those of one rank's shard, silently.
    if any(hasattr(parameter, "_fsdp_flattened") for parameter in named.values()):
        raise UnsupportedError(FSDP1)
