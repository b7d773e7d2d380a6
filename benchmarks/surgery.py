"""Time and memory of ``collect`` + ``combine``: domains x groupings x buffers, on a processor or a GPU.

    python benchmarks/surgery.py                                # 100M parameters on the processor: the stated targets
    python benchmarks/surgery.py --device cuda --shape 0.5b     # on a GPU
    python benchmarks/surgery.py --quick                        # seconds, to see that it runs

Several things take turns, several times over, and their medians are compared:

* ours: ``Surgeon.collect`` for every domain, then ``Surgeon.combine``, for every grouping and kind of buffer;
* loop: the usual way to write it, one parameter tensor after the other (``PerTensorLoop`` in ``common.py``);
* bound: reading every gradient twice and writing one, at the speed of plain sums and one copy measured here. "over
  bound" is time over that time; in processor seconds of all threads ("cpu/bd") as well, which hardly depend
  on what else the machine does. "over copies" takes the speed of copies for all of it.

Memory is the peak above what was held before, the gradients handed in counted as one copy per domain. At last, the
share that surgery (``mgs``, the largest number of domains) has in a training step: forward and backward of every
domain's completions and AdamW. Generation is left out, so the share in a whole GRPO step is smaller.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

from common import (
    SHAPES,
    Cost,
    PerTensorLoop,
    Shape,
    bound_cost,
    copies_bound,
    cost,
    count,
    give_memory_back,
    machine,
    median_cost,
    peak_rise,
    seconds,
    surgery,
)
from counterpoint.surgery import Surgeon


@dataclass(frozen=True)
class Row:
    """Medians of one combination; seconds, and peak memory in gradient copies. ``loop`` is 0 where left out."""

    domains: int
    grouping: str
    buffers: str
    ours: float
    loop: float
    bound: float
    copies: float
    processor_over_bound: float
    gigabytes_per_second: float
    ours_peak: float
    loop_peak: float

    @property
    def speedup(self) -> float:
        """How many times faster than the per-tensor loop."""
        return self.loop / self.ours

    @property
    def over_copies(self) -> float:
        """The same where copies say how fast bytes can be moved."""
        return self.ours / self.copies

    @property
    def over_bound(self) -> float:
        """How many times the cost of moving the bytes."""
        return self.ours / self.bound


@dataclass(frozen=True)
class Share:
    """Surgery beside the rest of a training step; seconds."""

    parameters: int
    tokens: int
    domains: int
    training: float
    surgery: float


def measure(options: argparse.Namespace, num_domains: int) -> list[Row]:
    """Medians over turns for one number of domains, one row per grouping and kind of buffer."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    shapes = SHAPES[options.shape].parameters()
    named = {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
    parameters = list(named.values())
    gradients = [[torch.randn_like(p) for p in parameters] for _ in range(num_domains)]
    fresh = {d: [g.clone() for g in gradients[d]] for d in {0, num_domains - 1}}  # the sum goes into one of these
    size = 4.0 * sum(p.numel() for p in parameters)

    def restore() -> None:
        for d, originals in fresh.items():
            torch._foreach_copy_(gradients[d], originals)
        for parameter in parameters:
            parameter.grad = None
        give_memory_back()

    ways: dict[tuple[str, str], Surgeon | PerTensorLoop] = {
        (grouping, buffers): Surgeon(named, options.strategy, grouping=grouping, buffers=buffers)
        for grouping in options.grouping
        for buffers in options.buffers
    }
    if not options.no_loop:
        ways["loop", ""] = PerTensorLoop(named)
    peaks: dict[tuple[str, str], float] = {}
    for key, way in ways.items():  # a first turn for memory, and to warm up
        restore()
        peaks[key] = num_domains + peak_rise(lambda way=way: surgery(way, parameters, gradients), device) / size
    costs: dict[tuple[str, str], list[Cost]] = {key: [] for key in ways}
    bounds, copies = [], []
    for _ in range(options.repetitions):
        for key, way in ways.items():
            restore()
            costs[key].append(cost(lambda way=way: surgery(way, parameters, gradients), device))
        bounds.append(bound_cost(gradients, device))
        copies.append(copies_bound(gradients, device))
    bound = median_cost(bounds)
    median = {key: median_cost(found) for key, found in costs.items()}
    loop = median.pop(("loop", ""), Cost(0.0, 0.0)).wall
    return [
        Row(
            domains=num_domains,
            grouping=grouping,
            buffers=buffers,
            ours=mine.wall,
            loop=loop,
            bound=bound.wall,
            copies=statistics.median(copies),
            processor_over_bound=mine.processor / bound.processor,
            gigabytes_per_second=(2 * num_domains + 1) * size / bound.wall / 1e9,
            ours_peak=peaks[grouping, buffers],
            loop_peak=peaks.get(("loop", ""), 0.0),
        )
        for (grouping, buffers), mine in median.items()
    ]


def share(options: argparse.Namespace) -> Share:
    """Surgery with the largest number of domains, in turns with a training step of a model of that shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device, num_domains = torch.device(options.device), max(options.domains)
    shape: Shape = SHAPES[options.share_shape]
    key_value = shape.key_value or shape.hidden
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden // 64,
            num_key_value_heads=key_value // 64,
            tie_word_embeddings=True,
        )
    ).to(device)
    surgeon = Surgeon(model, options.strategy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=device.type == "cuda")
    rows = options.completions // num_domains
    tokens = torch.randint(shape.vocabulary, (num_domains, rows, options.length), device=device)
    in_surgery: list[float] = []
    whole: list[float] = []

    def timed(function: Callable[[], object]) -> None:
        in_surgery[-1] += seconds(function, device)

    def step() -> None:
        in_surgery.append(0.0)
        for domain in range(num_domains):
            for batch in tokens[domain].split(options.micro_batch):
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    model(input_ids=batch, labels=batch).loss.backward()
            timed(lambda domain=domain: surgeon.collect(str(domain), last=domain == num_domains - 1))
        timed(surgeon.combine)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(options.repetitions + 1):
        whole.append(seconds(step, device))
    surgery_seconds, step_seconds = statistics.median(in_surgery[1:]), statistics.median(whole[1:])
    return Share(count(shape), tokens.numel(), num_domains, step_seconds - surgery_seconds, surgery_seconds)


def show(row: Row) -> str:
    cells = [
        f"{row.domains:>2}  {row.grouping:8} {row.buffers:9} {row.ours * 1e3:8.1f} {row.bound * 1e3:8.1f}",
        f"{row.over_bound:9.2f}x {row.processor_over_bound:7.2f}x {row.over_copies:10.2f}x",
        f"{row.loop * 1e3:8.0f} {row.speedup:8.1f}x" if row.loop else f"{'-':>8} {'-':>9}",
        f"{row.gigabytes_per_second:7.1f} {row.ours_peak:9.2f} {row.loop_peak:9.2f}",
    ]
    return " ".join(cells)


HEADER = (
    f"{'D':>2}  {'grouping':8} {'buffers':9} {'ours ms':>8} {'bound ms':>8} {'over bound':>10} {'cpu/bd':>8} "
    f"{'over copies':>11} "
    f"{'loop ms':>8} {'loop/ours':>9} {'GB/s':>7} {'our peak':>9} {'loop peak':>9}  (peaks in gradient copies)"
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--shape", choices=SHAPES, default="100m", help="model shape (default: 100m)")
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 3, 4, 8], help="numbers of domains D")
    parser.add_argument("--grouping", nargs="+", default=["module"], help="groupings, such as module tensor global")
    parser.add_argument("--buffers", nargs="+", default=["device"], help="of device, bfloat16 and cpu")
    parser.add_argument("--strategy", default="mgs")
    parser.add_argument("--repetitions", type=int, default=5, help="turns, of which medians are taken")
    parser.add_argument("--no-loop", action="store_true", help="leave out the per-tensor loop")
    parser.add_argument("--no-share", action="store_true", help="leave out the share in a training step")
    parser.add_argument("--share-shape", choices=SHAPES, help="its model (default: 3m on a processor, 0.5b on a GPU)")
    parser.add_argument("--completions", type=int, help="its completions a step (default: 64; 128 on a GPU)")
    parser.add_argument("--length", type=int, help="their tokens (default: 64; 1024 on a GPU)")
    parser.add_argument("--micro-batch", type=int, default=8, help="completions of one backward")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, two domains, one repetition")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    options.share_shape = options.share_shape or ("0.5b" if on_gpu else "3m")
    options.completions = options.completions or (128 if on_gpu else 64)
    options.length = options.length or (1024 if on_gpu else 64)
    if options.quick:
        options.shape = options.share_shape = "tiny"
        options.domains, options.repetitions, options.completions, options.length = [2], 1, 4, 16
    return options


def main() -> None:
    options = arguments()
    facts = machine(torch.device(options.device))
    print(f"{count(SHAPES[options.shape]) / 1e6:.1f}M parameters, float32, {options.strategy}")
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    print(HEADER)
    rows: list[Row] = []
    for num_domains in options.domains:
        for row in measure(options, num_domains):
            rows.append(row)
            print(show(row), flush=True)
    found = None if options.no_share else share(options)
    if found:
        print(
            f"surgery takes {found.surgery * 1e3:.1f} ms beside {found.training:.3f} s of training: "
            f"{found.surgery / (found.training + found.surgery):.2%} of a step of {found.tokens} tokens, "
            f"{found.parameters / 1e6:.1f}M parameters, D = {found.domains}, without generation"
        )
    if options.json:
        table = [
            asdict(row) | {key: getattr(row, key) for key in ("speedup", "over_bound", "over_copies")} for row in rows
        ]
        result = {"machine": facts, "shape": options.shape, "strategy": options.strategy, "rows": table}
        options.json.write_text(json.dumps(result | {"share": asdict(found) if found else None}, indent=1))


if __name__ == "__main__":
    main()
