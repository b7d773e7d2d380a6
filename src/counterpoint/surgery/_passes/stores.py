"""The gradients of the step in progress, by domain, and where they wait: on the device, in bfloat16, in host memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StrategyError, UnsupportedError, nearest
from .shards import like_parameter, local

Vector = tuple[str, int]
"""A domain, and which half of its micro-batches: 0 where a domain is not split."""

Gradients = list[Tensor | None]
"""What this rank holds of the gradient of each parameter; ``None`` where there is no gradient."""

Held = Mapping[Vector, Gradients]


class DomainBuffers:
    """Takes gradients out of ``.grad`` and keeps them by domain until the step is combined.

    No gradient is copied unless ``copy`` or the store does: the tensors are handed over, those of a domain's earlier
    micro-batches are added to them. ``halves`` files a domain's micro-batches alternately under half 0 and 1.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], store: "DeviceStore", copy: bool, halves: bool) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._store = store
        self._copy = copy
        self._halves = halves
        self.held: dict[Vector, Gradients] = {}
        self.counts: dict[Vector, int] = {}
        """How often each vector was collected."""
        self.sequence: list[str] = []
        """The domains in the order in which they were collected."""

    def clear(self) -> None:
        for held in self.held.values():
            self._store.release(held)
        self.held, self.counts, self.sequence = {}, {}, []

    def take(self, domain: str, last: bool = False) -> None:
        """Moves ``.grad`` of every parameter into the domain's buffer, adding to what is there."""
        gradients = [parameter.grad for parameter in self._parameters]
        self._check(domain, gradients)
        mine = [self._detached(g, p, last) for g, p in zip(gradients, self._parameters, strict=True)]
        for parameter in self._parameters:
            parameter.grad = None
        seen = self.counts.get((domain, 0), 0) + self.counts.get((domain, 1), 0)
        vector = (domain, seen % 2 if self._halves else 0)
        if vector in self.held:
            mine = add_up(self._store.load(self.held[vector]), mine)
            self._store.release(self.held[vector])
        self.held[vector] = mine if last else self._store.keep(mine)
        self.counts[vector] = self.counts.get(vector, 0) + 1
        self.sequence.append(domain)

    def _detached(self, gradient: Tensor | None, parameter: nn.Parameter, last: bool) -> Tensor | None:
        """What this rank holds of the gradient, contiguous, in memory that nobody else writes before combine()."""
        if gradient is None:
            return None
        mine = local(like_parameter(gradient.detach(), parameter))
        if self._copy and not last:
            return mine.clone(memory_format=torch.contiguous_format)
        return mine.contiguous()

    def _check(self, domain: str, gradients: Gradients) -> None:
        if all(gradient is None for gradient in gradients):
            raise StrategyError(
                f"collect({domain!r}) found no gradient in any parameter: call it after backward() and before "
                "zero_grad()."
            )
        for name, gradient in zip(self._names, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise UnsupportedError(
                    f"The gradient of {name!r} is sparse, and surgery needs dense ones: make the embedding with "
                    "sparse=False."
                )


def add_up(terms: Gradients, gradients: Gradients) -> Gradients:
    """Adds ``terms`` to ``gradients``, in their memory and precision."""
    both = [(g, t) for g, t in zip(gradients, terms, strict=True) if g is not None and t is not None]
    if both:
        torch._foreach_add_([g for g, _ in both], [t for _, t in both])
    return [t if g is None else g for g, t in zip(gradients, terms, strict=True)]


class DeviceStore:
    """Keeps gradients as they are: the fastest, and no copy is ever made."""

    def keep(self, gradients: Gradients) -> Gradients:
        """Stores gradients; what is returned stands for them."""
        return gradients

    def load(self, held: Gradients) -> Gradients:
        """Stored gradients, back on their devices."""
        return held

    def batches(self, held_VP: Sequence[Gradients]) -> Iterator[tuple[int, list[Gradients]]]:
        """(number of the first parameter, gradients[v]): runs of parameters, on the device, for every vector v."""
        yield 0, list(held_VP)

    def release(self, held: Gradients) -> None:
        """Takes back memory of stored gradients that nobody reads any more."""


class CompactStore(DeviceStore):
    """Keeps gradients in bfloat16: half the memory of float32, at a relative rounding error up to 2^-9 per element."""

    def keep(self, gradients: Gradients) -> Gradients:
        return [None if g is None else g.to(torch.bfloat16) if g.element_size() > 2 else g for g in gradients]


class StreamCopies:
    """Copies between devices and pinned host memory, on a stream of its own beside each device's other work."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = tuple(devices)
        """Where gradients are taken from; those on other devices (the processor) stay where they are."""
        modules = {device: torch.get_device_module(device) for device in self.devices}
        self._streams: dict[torch.device, Any] = {d: (module, module.Stream(d)) for d, module in modules.items()}

    def empty(self, like: Tensor) -> Tensor:
        """New pinned memory; slow, so it is kept and used again."""
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def to_host(self, sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Starts copies of what the devices have computed so far; a source's memory is reused once its copy is done."""
        for device, (module, stream) in self._streams.items():
            stream.wait_stream(module.current_stream(device))
            with module.stream(stream):
                for source, target in zip(sources, targets, strict=True):
                    if source.device == device:
                        target.copy_(source, non_blocking=True)
                        source.record_stream(stream)

    def to_device(self, source: Tensor, device: torch.device) -> Tensor:
        """Starts the copy back; ``wait()`` before the copy is read."""
        module, stream = self._streams[device]
        with module.stream(stream):
            copy = source.to(device, non_blocking=True)
        copy.record_stream(module.current_stream(device))
        return copy

    def wait(self) -> None:
        """Makes the devices' work from here on wait for all copies started so far; the host goes on."""
        for device, (module, stream) in self._streams.items():
            module.current_stream(device).wait_stream(stream)


class HostStore(DeviceStore):
    """Keeps gradients in pinned host memory.

    Copies run beside the forward and backward passes that follow. For both passes of ``combine()`` the gradients come
    back a stretch of parameters at a time, the next stretch while one is worked on: the device holds two stretches,
    each no longer than the longest parameter.
    """

    def __init__(self, copies: StreamCopies) -> None:
        self._copies = copies
        self._home: dict[int, torch.device] = {}
        """Host tensors in use, by ``id``, and the device that each one's gradient came from."""
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}

    def keep(self, gradients: Gradients) -> Gradients:
        """Starts the copies to host memory and returns at once."""
        held: Gradients = list(gradients)
        moved = [(i, g) for i, g in enumerate(gradients) if g is not None and g.device in self._copies.devices]
        hosts = [self._memory(g) for _, g in moved]
        for (i, _), host in zip(moved, hosts, strict=True):
            held[i] = host
        self._copies.to_host([g for _, g in moved], hosts)
        return held

    def load(self, held: Gradients) -> Gradients:
        copies = self._start_load(held)
        self._copies.wait()
        return copies

    def batches(self, held_VP: Sequence[Gradients]) -> Iterator[tuple[int, list[Gradients]]]:
        """Stretches of parameters; the next one is on its way while one is used."""
        stretches = _stretches(held_VP)
        following = [self._start_load(held[slice(*stretches[0])]) for held in held_VP]
        for i, (low, _) in enumerate(stretches):
            now = following
            self._copies.wait()
            if i + 1 < len(stretches):
                following = [self._start_load(held[slice(*stretches[i + 1])]) for held in held_VP]
            yield low, now

    def release(self, held: Gradients) -> None:
        """Keeps the host memory for the gradients of the next step."""
        for tensor in held:
            if tensor is not None and self._home.pop(id(tensor), None) is not None:
                self._free.setdefault((tensor.shape, tensor.dtype), []).append(tensor)

    def _memory(self, gradient: Tensor) -> Tensor:
        free = self._free.get((gradient.shape, gradient.dtype))
        host = free.pop() if free else self._copies.empty(gradient)
        self._home[id(host)] = gradient.device
        return host

    def _start_load(self, held: Gradients) -> Gradients:
        return [
            self._copies.to_device(h, self._home[id(h)]) if h is not None and id(h) in self._home else h for h in held
        ]


def _host_store(devices: Iterable[torch.device]) -> DeviceStore:
    away = {device for device in devices if device.type != "cpu"}
    return HostStore(StreamCopies(away)) if away else DeviceStore()


STORES: dict[str, Callable[[Iterable[torch.device]], DeviceStore]] = {
    "device": lambda devices: DeviceStore(),
    "bfloat16": lambda devices: CompactStore(),
    "cpu": _host_store,
}
"""The values of ``buffers`` by name; each makes a store for gradients on some devices."""


def build_store(name: str, devices: Iterable[torch.device]) -> DeviceStore:
    if name not in STORES:
        raise StrategyError(f"buffers={name!r} is unknown: {nearest(str(name), STORES)}")
    return STORES[name](devices)


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
