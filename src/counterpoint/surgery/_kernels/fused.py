"""Both passes on CUDA by Triton kernels: one launch for all inner products, one for all sums, of any number of units.

With operations on one parameter at a time a GPU waits for launches most of the time. A kernel's programs find their
vectors through a table of addresses, which is sent to the device at every call (gradients move from step to step), and
their elements in a table of items, which stays there as long as spans and dtypes do. Blocks of another dtype or
alignment take a launch of their own. A last small kernel adds up each unit's items in a fixed order: no atomic
additions, so equal input gives bitwise equal results. Nothing is read to the host.
"""

import itertools
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from . import triton as kernels
from .spans import Blocks, Span, cut, to_device

FAILURES = (TritonError, RuntimeError, OSError, subprocess.SubprocessError)
"""No compiler, no assembler for this GPU, a driver that refuses: the ways in which just-in-time kernels fail."""

ITEM = 1 << 15
"""Elements of every vector that one program works through."""

HELD = 1 << 13
"""Elements of all vectors together that a program holds at a time: 64 registers for each of its 128 threads."""

ROWS = 64
"""Items whose products are added up at a time."""

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


@dataclass(frozen=True)
class Kind:
    """What a launch is compiled for: dtypes of the vectors (two bits each) and the target, and 16-byte alignment."""

    codes: int
    target: int
    wide: bool
    aligned: bool


@dataclass(frozen=True)
class Layout:
    """Tables on the device that last as long as spans and kinds do; see ``triton`` for what they hold."""

    items: Tensor
    launches: tuple[tuple[Kind, int, int], ...]
    """Kind, first item and number of items; items of one kind stand together."""
    order: Tensor
    ends: Tensor
    units: Tensor


def unit_grams(blocks_VB: Blocks, spans: Sequence[Span], num_units: int) -> Tensor:
    """Inner products [U, V, V], float64; every span has elements and vectors."""
    num_vectors = len(blocks_VB)
    addresses, layout = _tables(blocks_VB, None, spans)
    device = addresses.device
    grams = torch.zeros(num_units, num_vectors, num_vectors, dtype=torch.float64, device=device)
    places = triton.next_power_of_2(num_vectors**2)
    products = torch.empty(len(layout.items), places, dtype=torch.float64, device=device)
    with _current(device):
        for kind, first, number in layout.launches:
            kernels.products_kernel[(number,)](
                addresses,
                layout.items,
                products,
                first,
                V=num_vectors,
                CODES=kind.codes,
                ALIGNED=kind.aligned,
                WIDE=kind.wide,
                PLACES=places,
                BLOCK=_block(num_vectors),
            )
        if len(layout.units):
            kernels.units_kernel[(len(layout.units),)](
                products, layout.order, layout.ends, layout.units, grams, V=num_vectors, PLACES=places, ROWS=ROWS
            )
    return grams


def weighted_sums_(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None], spans: Sequence[Span], weights_UV: Tensor
) -> None:
    """Writes every span's weighted sum into its target; all spans have vectors and a target."""
    num_vectors = len(blocks_VB)
    addresses, layout = _tables(blocks_VB, targets_B, spans)
    weights = to_device(weights_UV.double().contiguous(), addresses.device)
    with _current(addresses.device):
        for kind, first, number in layout.launches:
            kernels.sums_kernel[(number,)](
                addresses,
                layout.items,
                weights,
                first,
                V=num_vectors,
                CODES=kind.codes,
                TARGET=kind.target,
                ALIGNED=kind.aligned,
                WIDE=kind.wide,
                BLOCK=_block(num_vectors),
            )


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Launches go to the current device, which need not be the gradients'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _block(num_vectors: int) -> int:
    return min(HELD // triton.next_power_of_2(num_vectors), HELD // 2)


def _tables(
    blocks_VB: Blocks, targets_B: Sequence[Tensor | None] | None, spans: Sequence[Span]
) -> tuple[Tensor, Layout]:
    """The addresses of vectors and targets, and the tables of items, on the blocks' device."""
    rows: list[int] = []
    kinds: list[Kind] = []
    for b, blocks in enumerate(zip(*blocks_VB, strict=True)):
        target = targets_B[b] if targets_B is not None else None
        row = [0 if block is None else block.data_ptr() for block in (*blocks, target)]
        dtypes = [block.dtype for block in blocks if block is not None]
        usual = CODES[dtypes[0]] if dtypes else 0  # a missing block passes for one like the others
        codes = [usual if block is None else CODES[block.dtype] for block in blocks]
        digits = sum(code << (2 * v) for v, code in enumerate(codes))
        into = usual if target is None else CODES[target.dtype]
        kinds.append(Kind(digits, into, torch.float64 in dtypes, all(address % 16 == 0 for address in row)))
        rows += row
    device = next((b.device for blocks in blocks_VB for b in blocks if b is not None), torch.device("cpu"))
    return to_device(torch.tensor(rows, dtype=torch.int64), device), _layout(tuple(spans), tuple(kinds), str(device))


@lru_cache(maxsize=256)
def _layout(spans: tuple[Span, ...], kinds_B: tuple[Kind, ...], device: str) -> Layout:
    # Items that begin at an odd place are not aligned; 8 elements of the smallest dtype are 16 bytes.
    pieces = [(_of_item(kinds_B[span.block], span.low), span) for span in cut(spans, ITEM)]
    pieces.sort(key=lambda piece: (piece[0].codes, piece[0].target, piece[0].aligned))
    launches, first = [], 0
    for kind, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        number = len(list(group))
        launches.append((kind, first, number))
        first += number
    items = torch.tensor([(s.block, s.low, s.high - s.low, s.unit) for _, s in pieces], dtype=torch.int64).view(-1, 4)
    units, counts = torch.unique(items[:, 3], return_counts=True)
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    order = items[:, 3].argsort(stable=True)
    to = torch.device(device)
    return Layout(to_device(items, to), tuple(launches), *(to_device(t, to) for t in (order, ends, units)))


def _of_item(kind: Kind, low: int) -> Kind:
    return kind if low % 8 == 0 else replace(kind, aligned=False)
