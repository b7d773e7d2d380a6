"""Measures what tensors are alive: the ground truth for the planner's formulas."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from counterpoint.surgery import Surgeon, _kernels
from counterpoint.surgery._passes import scattered, stores
from counterpoint.surgery._passes.stores import HostStore

STEPS = 2
"""Steps that are measured; the second one must need no more than the first."""


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages made inside that are still alive; weights and host memory are left out."""

    def __init__(self, model: nn.Module, copies: "HostCopies") -> None:
        super().__init__()
        locals_P = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
        self._weights = {tensor.untyped_storage()._cdata for tensor in locals_P}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._copies.storages | self._weights:
            self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())

    @property
    def now(self) -> int:
        """Bytes alive now."""
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        return sum(size for _, size in self._made.values())


class HostCopies:
    """Copies to memory of its own on the CPU, counted as host memory, as pinned memory is where there is a GPU."""

    devices = (torch.device("cpu"),)

    def __init__(self) -> None:
        self._memory: list[Tensor] = []
        self.on_load: Callable[[], None] = lambda: None

    @property
    def host(self) -> int:
        """Bytes of host memory ever asked for; it is never given back."""
        return sum(memory.nbytes for memory in self._memory)

    @property
    def storages(self) -> set[int]:
        """The storages that are host memory."""
        return {memory.untyped_storage()._cdata for memory in self._memory}

    def empty(self, like: Tensor) -> Tensor:
        with _disable_current_modes():
            self._memory.append(torch.empty_like(like))
        return self._memory[-1]

    def to_host(self, sources: Any, targets: Any) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    def to_device(self, source: Tensor, device: torch.device) -> Tensor:
        copy = source.clone()
        self.on_load()
        return copy

    def wait(self) -> None:
        pass


def tiny(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Twelve layers of 64 x 64 and one of 128 x 64: no tensor holds more than a seventh of all."""
    return nn.Sequential(*(nn.Linear(64, 64) for _ in range(12)), nn.Linear(64, 128)).to(dtype)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of a model."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def measure(model: nn.Module, domains: int, buffers: str, halves: bool = False, group: Any = None) -> dict[str, int]:
    """Bytes alive besides the model: ``waiting`` before the step is combined, at most ``inside`` of that, ``after`` it.

    Inside it is looked before and after every kernel, packing and copy from the host: a kernel's own scratch memory is
    of a fixed size, and would be most of a tiny model's. ``host`` is the memory asked for on the host. ``halves``
    collects every domain twice, for a weighting that splits its gradients.
    """
    copies = HostCopies()
    live = LiveBytes(model, copies)
    inside: list[int] = []
    copies.on_load = lambda: inside.append(live.now)
    kernels = {name: getattr(_kernels, name) for name in ("unit_grams", "weighted_sums_")}
    changes = [patch.object(_kernels, name, _watched(kernel, live, inside)) for name, kernel in kernels.items()]
    changes.append(patch.object(scattered, "_divided", _watched(scattered._divided, live, inside)))
    changes.append(patch.dict(stores.STORES, {"cpu": lambda devices: HostStore(copies)}))
    found: dict[str, int] = {}
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        weighting = Halved() if halves else "pcgrad"
        surgeon = Surgeon(model, grouping="tensor", weighting=weighting, buffers=buffers, average_over=group)
        stack.enter_context(live)
        for _ in range(STEPS):
            _collect_all(surgeon, model, domains, 2 if halves else 1)
            found["waiting"] = _settled(live)
            surgeon.combine()
            found["after"] = _settled(live)
            for parameter in model.parameters():
                parameter.grad = None
    return {**found, "inside": max(inside), "host": copies.host}


def _collect_all(surgeon: Surgeon, model: nn.Module, domains: int, times: int) -> None:
    names = [f"d{d}" for d in range(domains) for _ in range(times)]
    for i, domain in enumerate(names):
        for parameter in model.parameters():
            parameter.grad = _gradient(parameter)
        surgeon.collect(domain, last=i == len(names) - 1)


def _settled(live: LiveBytes) -> int:
    """Bytes alive once gloo's threads have let go of what they sent."""
    return min(live.now for _ in range(5) if not time.sleep(0.01))


def _gradient(parameter: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor):
        return torch.randn_like(parameter).detach()
    mine = torch.randn_like(parameter.to_local())
    return DTensor.from_local(
        mine, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=(64, 1)[-parameter.ndim :]
    )


def _watched(kernel: Any, live: LiveBytes, seen: list[int]) -> Any:
    def call(*args: Any) -> Any:
        seen.append(live.now)
        result = kernel(*args)
        seen.append(live.now)
        return result

    return call


class Halved:
    """Weights of one, from a weighting that asks for halves."""

    uses_halves = True

    def __call__(self, gram_GDD: Tensor, context: Any) -> Tensor:
        return torch.ones(gram_GDD.shape[:2], dtype=torch.float64)


def measure_averaged(domains: int) -> dict[str, dict[str, int]]:
    """The same for each kind of buffers, on ranks that average their own gradients at the end of the step."""
    group = dist.group.WORLD
    return {buffers: measure(tiny(), domains, buffers, group=group) for buffers in ("device", "bfloat16", "cpu")}


def measure_sharded(domains: int) -> dict[str, dict[str, int]]:
    """The same on ranks that hold shards under FSDP2."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for buffers in ("device", "bfloat16", "cpu"):
        model = tiny()
        fully_shard(model, mesh=mesh)
        found[buffers] = measure(model, domains, buffers)
    return found
