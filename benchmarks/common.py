"""What the benchmarks of surgery share: shapes of models, clocks, and the usual way to write surgery for comparison."""

import ctypes
import datetime
import gc
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from counterpoint.surgery import Surgeon

Gradients = list[Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model with tied embeddings."""

    layers: int
    hidden: int
    inner: int
    vocabulary: int
    key_value: int | None = None
    """Rows of the key and value projections; ``hidden`` where not given."""

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            shapes |= {f"{at}.self_attn.{x}_proj.weight": (self.hidden, self.hidden) for x in "qo"}
            shapes |= {f"{at}.self_attn.{x}_proj.weight": (self.key_value or self.hidden, self.hidden) for x in "kv"}
            shapes |= {f"{at}.mlp.{x}_proj.weight": (self.inner, self.hidden) for x in ("gate", "up")}
            shapes[f"{at}.mlp.down_proj.weight"] = (self.hidden, self.inner)
            shapes |= {f"{at}.{x}_layernorm.weight": (self.hidden,) for x in ("input", "post_attention")}
        shapes["model.norm.weight"] = (self.hidden,)
        return shapes


SHAPES = {
    "tiny": Shape(2, 64, 128, 512),
    "1m": Shape(4, 128, 384, 1_000),
    "3m": Shape(6, 192, 512, 2_000),
    "10m": Shape(8, 320, 768, 4_000),
    "30m": Shape(10, 448, 1_280, 10_000),
    "100m": Shape(12, 768, 2_048, 20_000),
    "300-tensors": Shape(33, 512, 1_376, 2_000),
    "300m": Shape(20, 1_024, 2_816, 32_000),
    "0.5b": Shape(24, 896, 4_864, 151_936, 128),
    "1b": Shape(18, 2_048, 5_632, 50_000),
}
"""100m is what the targets are stated for; 0.5b is Qwen2.5-0.5B without biases; 300-tensors has 299 of them."""


def count(shape: Shape) -> int:
    """Number of parameters."""
    return sum(torch.Size(s).numel() for s in shape.parameters().values())


def machine(device: torch.device) -> dict[str, str | int]:
    """What a result cannot be read without."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "date": datetime.date.today().isoformat(),
        "device": name,
        "processors": os.cpu_count() or 0,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Cost:
    """Wall seconds, and processor seconds of all threads; the latter hardly depend on what else the machine does."""

    wall: float
    processor: float


def cost(function: Callable[[], object], device: torch.device) -> Cost:
    """What it takes, the device's work included in the wall time.

    Python collects no garbage meanwhile, as in ``timeit``: that takes as long as surgery, and who left it is not who
    would pay.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter(), time.process_time()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return Cost(time.perf_counter() - start[0], time.process_time() - start[1])
    finally:
        if collects:
            gc.enable()


def give_memory_back() -> None:
    """Gives free memory back to the system, which happens at any time else, and to whom did not use it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it
    if trim is not None:
        trim(0)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time, the device's work included."""
    return cost(function, device).wall


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Medians, each of its own."""
    return Cost(statistics.median(c.wall for c in costs), statistics.median(c.processor for c in costs))


def peak_rise(function: Callable[[], object], device: torch.device) -> float:
    """Bytes by which memory rose at most while ``function`` ran: the device's, or the process's; NaN where unknown."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return float(torch.cuda.max_memory_allocated(device) - before)
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return float("nan")
    resident = _kilobytes(status, "VmRSS")
    clear.write_text("5")
    function()
    return (_kilobytes(status, "VmHWM") - resident) * 1024.0


def _kilobytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def bound_cost(gradients: list[Gradients], device: torch.device) -> Cost:
    """What it takes to read every gradient twice and write one: no surgery that looks before it adds does with less.

    On a processor by plain sums and one copy; on a GPU at the speed of copies from device memory to device memory.
    """
    if device.type == "cuda":
        return Cost(copies_bound(gradients, device), math.nan)
    copies = _room(gradients[0])

    def move() -> None:
        for domain in [*gradients, *gradients[1:]]:
            for gradient in domain:
                gradient.sum()
        torch._foreach_copy_(copies, gradients[0])

    return cost(move, device)


def copies_bound(gradients: list[Gradients], device: torch.device) -> float:
    """The same bytes at the speed of copies, which read as much as they write."""
    copies = _room(gradients[0])
    times = [seconds(lambda: torch._foreach_copy_(copies, gradients[0]), device) for _ in range(3)]
    return statistics.median(times) / 2 * (2 * len(gradients) + 1)


def _room(gradients: Gradients) -> Gradients:
    """Memory of the same shapes, touched: the first touch of new memory is not what is measured."""
    return [torch.empty_like(gradient).zero_() for gradient in gradients]


def surgery(surgeon: "Surgeon | PerTensorLoop", parameters: list[nn.Parameter], gradients: list[Gradients]) -> None:
    """One optimizer step's surgery; setting ``.grad`` stands for the backward passes and costs nothing."""
    for number, domain in enumerate(gradients):
        for parameter, gradient in zip(parameters, domain, strict=True):
            parameter.grad = gradient
        surgeon.collect(f"domain-{number}", last=number == len(gradients) - 1)
    surgeon.combine()


class PerTensorLoop:
    """Surgery as one would first write it, and as public code does it (see docs/strategies.md).

    Every ``.grad`` is cloned into its task's buffer. Then for one parameter tensor after the other: a cosine per pair
    of tasks read to the host, the tasks' tensors cloned, each projected in random order against the others with a host
    read per decision, the results summed; at last the sums are cloned into ``.grad``.
    """

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self._named = named
        self._buffers: dict[str, dict[str, Tensor]] = {}

    def collect(self, task: str, last: bool = False) -> None:
        """Clones ``.grad`` into the task's buffer."""
        self._buffers[task] = {name: p.grad.clone() for name, p in self._named.items() if p.grad is not None}
        for parameter in self._named.values():
            parameter.grad = None

    def combine(self) -> dict[str, float]:
        """Writes the surgery's result into ``.grad``; gives one metric per tensor and pair of tasks."""
        metrics: dict[str, float] = {}
        final = {name: self._one_tensor(name, metrics) for name in self._named}
        for name, parameter in self._named.items():
            parameter.grad = final[name].clone()
        self._buffers.clear()
        return metrics

    def _one_tensor(self, name: str, metrics: dict[str, float]) -> Tensor:
        tasks = list(self._buffers)
        originals = {task: self._buffers[task][name].clone() for task in tasks}
        for i, first in enumerate(tasks):
            for second in tasks[i + 1 :]:
                a, b = originals[first].flatten(), originals[second].flatten()
                cosine = torch.dot(a, b) / (a.norm() * b.norm() + 1e-12)
                metrics[f"{name}/{first}-{second}"] = cosine.item()
        projected = [self._project(task, originals) for task in random.sample(tasks, len(tasks))]
        return torch.stack(projected).sum(0)

    def _project(self, task: str, originals: dict[str, Tensor]) -> Tensor:
        gradient = originals[task].clone()
        for other in random.sample(list(originals), len(originals)):
            if other == task:
                continue
            dot = torch.dot(gradient.flatten(), originals[other].flatten())
            if dot.item() < 0:
                square = originals[other].norm() ** 2
                if square.item() > 0:
                    gradient = gradient - (dot / square) * originals[other]
        return gradient
