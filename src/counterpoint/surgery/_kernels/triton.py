"""Triton kernels for both passes; ``fused`` fills the tables and launches them.

One program works through one item: a few ten thousand elements of one span. ``CODE`` and the two-bit digits of
``CODES`` say what dtype a vector has: 0 float32, 1 bfloat16, 2 float16, 3 float64. Products and sums are formed in
float32, or in float64 (``WIDE``). Inner products are added up in float64 after every ``BLOCK`` elements.

Tables:
    addresses  int64 [B, V + 1]: vectors and target of every block; 0 where there is none
    items      int64 [N, 4]: block, low, length, unit
    products   float64 [N, PLACES]: the product of the pair (i, j) at the place ``i * V + j``
    order      int64 [N]: items, unit by unit
    ends       int64 [1 + number of units with items]: where each one's items end in the order
    units      int64 [number of units with items]
    grams      float64 [U, V * V]
    weights    float64 [U, V]
"""

# Arguments without annotation are tensors.
# ruff: noqa: ANN001
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl


@triton.jit
def _pointer(address, low, CODE: tl.constexpr, ALIGNED: tl.constexpr) -> tl.tensor:
    """Element ``low`` of the vector at this address."""
    if CODE == 0:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif CODE == 1:
        pointer = address.to(tl.pointer_type(tl.bfloat16))
    elif CODE == 2:
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.float64))
    pointer += low
    if ALIGNED:  # lets a thread read 16 bytes at once
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _read(
    address, low, offsets, length, CODE: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr
) -> tl.tensor:
    """Elements in the dtype of the sums; zeros past the end (MASKED), and where the address is 0."""
    pointers = _pointer(address, low, CODE, ALIGNED) + offsets
    if MASKED:
        there = offsets < tl.where(address != 0, length, 0)
    else:  # the same for all elements, so that reads stay wide
        there = tl.full(offsets.shape, 1, tl.int1) & (address != 0)
    values = tl.load(pointers, mask=there, other=0.0)
    return values.to(tl.float64) if WIDE else values.to(tl.float32)


@triton.jit
def _add_products(
    sums, addresses, block, low, offsets, length, V: tl.constexpr, CODES: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, MASKED: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Adds the inner products of all pairs over these elements to ``sums``."""
    places = tl.arange(0, sums.shape[0])
    for i in tl.static_range(V):
        x_address = tl.load(addresses + block * (V + 1) + i)
        x = _read(x_address, low, offsets, length, (CODES >> (2 * i)) & 3, ALIGNED, WIDE, MASKED)
        for j in tl.static_range(i, V):
            # Loads are written once per pair; nothing is stored between them, so the compiler keeps the first.
            y_address = tl.load(addresses + block * (V + 1) + j)
            y = _read(y_address, low, offsets, length, (CODES >> (2 * j)) & 3, ALIGNED, WIDE, MASKED)
            product = tl.sum(x * y, axis=0).to(tl.float64)
            sums += tl.where(places == i * V + j, product, 0.0)
    return sums


@triton.jit(do_not_specialize=["first_item"])
def products_kernel(
    addresses, items, products, first_item, V: tl.constexpr, CODES: tl.constexpr, ALIGNED: tl.constexpr,
    WIDE: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    item = (first_item + tl.program_id(0)).to(tl.int64)
    block = tl.load(items + item * 4)
    low = tl.load(items + item * 4 + 1)
    length = tl.load(items + item * 4 + 2)
    sums = tl.zeros([PLACES], dtype=tl.float64)
    whole = length // BLOCK
    for step in range(0, whole):
        offsets = step * BLOCK + tl.arange(0, BLOCK)
        sums = _add_products(sums, addresses, block, low, offsets, length, V, CODES, ALIGNED, WIDE, False)
    if whole * BLOCK < length:
        offsets = whole * BLOCK + tl.arange(0, BLOCK)
        sums = _add_products(sums, addresses, block, low, offsets, length, V, CODES, ALIGNED, WIDE, True)
    tl.store(products + item * PLACES + tl.arange(0, PLACES), sums)


@triton.jit
def units_kernel(
    products, order, ends, units, grams, V: tl.constexpr, PLACES: tl.constexpr, ROWS: tl.constexpr
) -> None:
    unit = tl.load(units + tl.program_id(0))
    low = tl.load(ends + tl.program_id(0))
    high = tl.load(ends + tl.program_id(0) + 1)
    places = tl.arange(0, PLACES)
    sums = tl.zeros([PLACES], dtype=tl.float64)
    for start in range(0, (high - low + ROWS - 1) // ROWS):
        at = low + start * ROWS + tl.arange(0, ROWS)
        rows = tl.load(order + at, mask=at < high, other=0)
        there = (at < high)[:, None] & (places < V * V)[None, :]
        sums += tl.sum(tl.load(products + rows[:, None] * PLACES + places[None, :], mask=there, other=0.0), axis=0)
    i, j = places // V, places % V
    row = grams + unit * V * V
    tl.store(row + i * V + j, sums, mask=(i <= j) & (places < V * V))
    tl.store(row + j * V + i, sums, mask=(i < j) & (places < V * V))


@triton.jit
def _sum_step(
    addresses, weights, unit, block, low, offsets, length, V: tl.constexpr, CODES: tl.constexpr, TARGET: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr
) -> None:  # fmt: skip
    total = tl.zeros(offsets.shape, dtype=tl.float64) if WIDE else tl.zeros(offsets.shape, dtype=tl.float32)
    for v in tl.static_range(V):
        address = tl.load(addresses + block * (V + 1) + v)
        weight = tl.load(weights + unit * V + v).to(total.dtype)
        total += weight * _read(address, low, offsets, length, (CODES >> (2 * v)) & 3, ALIGNED, WIDE, MASKED)
    if (TARGET == 1) | (TARGET == 2):
        total = total.to(tl.float32)  # float64 is not rounded to these at once
    address = tl.load(addresses + block * (V + 1) + V)
    into = _pointer(address, low, TARGET, ALIGNED) + offsets
    if MASKED:
        tl.store(into, total.to(into.dtype.element_ty), mask=offsets < length)
    else:
        tl.store(into, total.to(into.dtype.element_ty))


@triton.jit(do_not_specialize=["first_item"])
def sums_kernel(
    addresses, items, weights, first_item, V: tl.constexpr, CODES: tl.constexpr, TARGET: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    item = (first_item + tl.program_id(0)).to(tl.int64)
    block = tl.load(items + item * 4)
    low = tl.load(items + item * 4 + 1)
    length = tl.load(items + item * 4 + 2)
    unit = tl.load(items + item * 4 + 3)
    whole = length // BLOCK
    for step in range(0, whole):
        offsets = step * BLOCK + tl.arange(0, BLOCK)
        _sum_step(addresses, weights, unit, block, low, offsets, length, V, CODES, TARGET, ALIGNED, WIDE, False)
    if whole * BLOCK < length:
        offsets = whole * BLOCK + tl.arange(0, BLOCK)
        _sum_step(addresses, weights, unit, block, low, offsets, length, V, CODES, TARGET, ALIGNED, WIDE, True)
