"""Time and memory of ``collect`` + ``combine`` on gradients of a 100M-parameter Llama shape.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/surgery.py [--domains 2 3 4 8] [--strategy mgs] [--json]

Three things are timed in turn, several times over, and their medians compared:

* ours: ``Surgeon.collect`` for every domain, then ``Surgeon.combine``;
* loop: the usual way to write it, one parameter tensor after the other (see ``PerTensorLoop``);
* bound: reading every gradient twice and writing one, by plain sums and one copy. No surgery that needs all inner
  products of a group before it can weigh it does with less.

Memory is the peak of the process (Linux, CPU) above what it held with an empty ``.grad`` and no gradients, in
units of one full gradient.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from counterpoint.surgery import Surgeon

NUM_LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 12, 768, 2048, 20_000

Gradients = list[Tensor]


@dataclass(frozen=True)
class Row:
    """Medians for one number of domains; seconds, and peak memory in gradient copies."""

    domains: int
    ours: float
    loop: float
    bound: float
    ours_peak: float
    loop_peak: float

    @property
    def speedup(self) -> float:
        """How many times faster than the per-tensor loop."""
        return self.loop / self.ours

    @property
    def over_bound(self) -> float:
        """How many times the cost of moving the bytes."""
        return self.ours / self.bound


def llama_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama of 100M parameters with tied embeddings."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(NUM_LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qkvo"}
        shapes |= {f"{at}.mlp.{x}_proj.weight": (INTERMEDIATE, HIDDEN) for x in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes |= {f"{at}.{x}_layernorm.weight": (HIDDEN,) for x in ("input", "post_attention")}
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes


class PerTensorLoop:
    """Surgery as one would first write it, and as public code does it (see docs/strategies.md).

    Every ``.grad`` is cloned into its task's buffer. Then for one parameter tensor after the other: a cosine per pair
    of tasks read to the host, the tasks' tensors cloned, each projected in random order against the others with a host
    read per decision, the results summed; at last the sums are cloned into ``.grad``.
    """

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self._named = named
        self._buffers: dict[str, dict[str, Tensor]] = {}

    def collect(self, task: str) -> None:
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


def move_bytes(gradients: list[Gradients], out: Gradients) -> None:
    """Reads every gradient twice and writes one."""
    for domain in gradients:
        for gradient in domain:
            gradient.sum()
    for domain in gradients[1:]:
        for gradient in domain:
            gradient.sum()
    for target, gradient in zip(out, gradients[0], strict=True):
        target.copy_(gradient)


def surgery(surgeon: Surgeon | PerTensorLoop, parameters: list[nn.Parameter], gradients: list[Gradients]) -> None:
    """One optimizer step's surgery; setting ``.grad`` stands for the backward passes and costs nothing."""
    for number, domain in enumerate(gradients):
        for parameter, gradient in zip(parameters, domain, strict=True):
            parameter.grad = gradient
        surgeon.collect(f"domain-{number}")
    surgeon.combine()


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_rise(function: Callable[[], None]) -> float:
    """Bytes by which the process's resident memory rose at most while ``function`` ran; NaN where unknown."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return float("nan")
    before = _kilobytes(status, "VmRSS")
    clear.write_text("5")
    function()
    return (_kilobytes(status, "VmHWM") - before) * 1024.0


def _kilobytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def measure(num_domains: int, strategy: str, repetitions: int) -> Row:
    """Medians over interleaved repetitions for one number of domains."""
    torch.manual_seed(0)
    named = {name: nn.Parameter(torch.zeros(shape)) for name, shape in llama_shapes().items()}
    parameters = list(named.values())
    gradients = [[torch.randn_like(p) for p in parameters] for _ in range(num_domains)]
    fresh = [gradient.clone() for gradient in gradients[0]]  # combine() writes into the first domain's tensors
    surgeon, loop = Surgeon(named, strategy), PerTensorLoop(named)
    copy_bytes = 4.0 * sum(p.numel() for p in parameters)

    def restore() -> None:
        for parameter, gradient, original in zip(parameters, gradients[0], fresh, strict=True):
            parameter.grad = None
            gradient.copy_(original)

    def ours() -> None:
        surgery(surgeon, parameters, gradients)

    def theirs() -> None:
        surgery(loop, parameters, gradients)

    times: dict[str, list[float]] = {"ours": [], "loop": [], "bound": []}
    peaks = []
    for function in (ours, theirs):
        restore()
        peaks.append(num_domains + peak_rise(function) / copy_bytes)
    for _ in range(repetitions):
        for key, function in (("ours", ours), ("bound", lambda: move_bytes(gradients, fresh)), ("loop", theirs)):
            restore()
            times[key].append(seconds(function))
    median = {key: statistics.median(values) for key, values in times.items()}
    return Row(num_domains, median["ours"], median["loop"], median["bound"], peaks[0], peaks[1])


def show(row: Row) -> str:
    return (
        f"{row.domains:>3}  {row.ours * 1e3:>8.0f}  {row.loop * 1e3:>8.0f}  {row.bound * 1e3:>8.0f}  "
        f"{row.speedup:>9.1f}x  {row.over_bound:>9.2f}x  {row.ours_peak:>9.2f}  {row.loop_peak:>9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of gradient surgery on a 100M-parameter shape.")
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 3, 4, 8])
    parser.add_argument("--strategy", default="mgs")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args()
    size = sum(torch.Size(shape).numel() for shape in llama_shapes().values())
    if not options.json:
        print(f"{size / 1e6:.1f}M parameters, float32, {options.strategy}, {torch.get_num_threads()} threads")
        print(
            f"{'D':>3}  {'ours ms':>8}  {'loop ms':>8}  {'bound ms':>8}  {'loop/ours':>10}  {'ours/bound':>10}", end=""
        )
        print(f"  {'ours peak':>9}  {'loop peak':>9}   (peak in gradient copies)")
    rows = []
    for num_domains in options.domains:
        rows.append(measure(num_domains, options.strategy, options.repetitions))
        if not options.json:
            print(show(rows[-1]), flush=True)
    if options.json:
        found = [asdict(row) | {"speedup": row.speedup, "over_bound": row.over_bound} for row in rows]
        machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps({"parameters": size, "strategy": options.strategy, **machine, "rows": found}))


if __name__ == "__main__":
    main()
