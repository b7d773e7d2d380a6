"""Where the gradients of a step's domains wait until all are there: on the device, in bfloat16, or in host memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import StrategyError, nearest

Gradients = list[Tensor | None]
"""What this rank holds of the gradient of each parameter; ``None`` where there is no gradient."""

Batch = tuple[int, list[Gradients]]
"""Number of a first parameter, and for every vector the gradients from there on, on the device."""


class DeviceStore:
    """Keeps gradients as they are: the fastest, and no copy is ever made."""

    def keep(self, gradients: Gradients) -> Gradients:
        """Stores gradients; what is returned stands for them."""
        return gradients

    def load(self, held: Gradients) -> Gradients:
        """Stored gradients on the device, as precise as they were stored."""
        return held

    def add(self, held: Gradients, gradients: Gradients) -> Gradients:
        """Stores the sum of what is held and new gradients."""
        return add_up(gradients, held)

    def batches(self, held_VP: Sequence[Gradients]) -> Iterator[Batch]:
        """All vectors' gradients on the device, a stretch of parameters at a time."""
        yield 0, list(held_VP)

    def release(self, held_VP: Sequence[Gradients]) -> None:
        """Takes back memory of stored gradients that nobody reads any more."""


class CompactStore(DeviceStore):
    """Keeps gradients in bfloat16: half the memory of float32, at a relative rounding error up to 2^-9 per element."""

    def keep(self, gradients: Gradients) -> Gradients:
        """Rounds wider gradients to bfloat16."""
        return [None if g is None else g.to(torch.bfloat16) if g.element_size() > 2 else g for g in gradients]

    def add(self, held: Gradients, gradients: Gradients) -> Gradients:
        """Adds in the precision of the new gradients and rounds the sum once."""
        return self.keep(add_up(held, gradients))


class StreamCopies:
    """Copies between a device and pinned host memory on a stream of their own, beside the device's other work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = torch.get_device_module(device)
        self._stream = self._module.Stream(device)

    def empty(self, like: Tensor) -> Tensor:
        """New pinned memory; slow, so it is kept and used again."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def to_host(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Starts copies of what the device has computed so far; a source's memory is reused once its copy is done."""
        self._stream.wait_stream(self._module.current_stream(self._device))
        with self._module.stream(self._stream):
            for source, target in zip(sources, targets, strict=True):
                target.copy_(source, non_blocking=True)
                source.record_stream(self._stream)

    def to_device(self, source: Tensor) -> Tensor:
        """Starts the copy back; ``wait()`` before the copy is read."""
        with self._module.stream(self._stream):
            copy = source.to(self._device, non_blocking=True)
        copy.record_stream(self._module.current_stream(self._device))
        return copy

    def wait(self) -> None:
        """Makes the device's work from here on wait for all copies started so far; the host goes on."""
        self._module.current_stream(self._device).wait_stream(self._stream)


class HostStore(DeviceStore):
    """Keeps gradients in pinned host memory.

    Copies run beside the forward and backward passes that follow. For both passes of ``combine()`` the gradients come
    back a stretch of parameters at a time, the next stretch while one is worked on: the device holds two stretches,
    each no longer than the longest parameter.
    """

    def __init__(self, copies: StreamCopies) -> None:
        self._copies = copies
        self._kept: set[int] = set()
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def keep(self, gradients: Gradients) -> Gradients:
        """Starts the copies to host memory and returns at once."""
        hosts = [None if gradient is None else self._memory(gradient) for gradient in gradients]
        self._copies.to_host([g for g in gradients if g is not None], [h for h in hosts if h is not None])
        return hosts

    def load(self, held: Gradients) -> Gradients:
        """Copies back to the device."""
        copies = self._start_load(held)
        self._copies.wait()
        return copies

    def add(self, held: Gradients, gradients: Gradients) -> Gradients:
        """Adds on the device and stores the sum in the memory of what was held."""
        total = add_up(self.load(held), gradients)
        self.release([held])
        return self.keep(total)

    def batches(self, held_VP: Sequence[Gradients]) -> Iterator[Batch]:
        """Stretches of parameters; the next one is on its way while one is used."""
        stretches = _stretches(held_VP)
        following = [self._start_load(held[slice(*stretches[0])]) for held in held_VP]
        for i, (low, _) in enumerate(stretches):
            now = following
            self._copies.wait()
            if i + 1 < len(stretches):
                following = [self._start_load(held[slice(*stretches[i + 1])]) for held in held_VP]
            yield low, now

    def release(self, held_VP: Sequence[Gradients]) -> None:
        """Keeps the host memory for the gradients of the next step."""
        for held in held_VP:
            for tensor in held:
                if tensor is not None and id(tensor) in self._kept:
                    self._kept.discard(id(tensor))
                    self._free.setdefault((tensor.shape, tensor.dtype), []).append(tensor)

    def _memory(self, gradient: Tensor) -> Tensor:
        free = self._free.get((gradient.shape, gradient.dtype))
        host = free.pop() if free else self._copies.empty(gradient)
        self._kept.add(id(host))
        return host

    def _start_load(self, held: Gradients) -> Gradients:
        return [self._copies.to_device(h) if h is not None and id(h) in self._kept else h for h in held]


STORES: dict[str, Callable[[torch.device], DeviceStore]] = {
    "device": lambda device: DeviceStore(),
    "bfloat16": lambda device: CompactStore(),
    "cpu": lambda device: DeviceStore() if device.type == "cpu" else HostStore(StreamCopies(device)),
}
"""The values of ``buffers`` by name."""


def build_store(name: str, device: torch.device) -> DeviceStore:
    """The store that ``buffers`` names, for gradients on ``device``; ``StrategyError`` for an unknown name."""
    if name not in STORES:
        raise StrategyError(f"buffers={name!r} is unknown: {nearest(str(name), STORES)}")
    return STORES[name](device)


def add_up(terms: Gradients, gradients: Gradients) -> Gradients:
    """Adds ``terms`` to ``gradients``, in their memory."""
    both = [(g, t) for g, t in zip(gradients, terms, strict=True) if g is not None and t is not None]
    if both:
        torch._foreach_add_([g for g, _ in both], [t for _, t in both])
    return [t if g is None else g for g, t in zip(gradients, terms, strict=True)]


def _stretches(held_VP: Sequence[Gradients]) -> list[tuple[int, int]]:
    """Stretches of parameters, each with at most as many bytes as the longest parameter."""
    sizes = [max((h.nbytes for h in column if h is not None), default=0) for column in zip(*held_VP, strict=True)]
    longest, found, low, total = max(sizes), [], 0, 0
    for i, size in enumerate(sizes):
        if total + size > longest and i > low:
            found.append((low, i))
            low, total = i, 0
        total += size
    return [*found, (low, len(sizes))]
