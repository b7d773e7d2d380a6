"""How the cost of ``collect`` + ``combine`` grows: with domains, with parameters, with ranks.

    python benchmarks/scaling.py                  # minutes; up to 1B parameters as far as --memory allows
    python benchmarks/scaling.py --quick          # seconds, to see that it runs

For each a table of medians and an exponent: the slope of a straight line through the logarithms of all measured times,
by least squares, with its 95 % interval. Expected:

* both passes over gradients: 1 in D and 1 in the number of parameters P as long as memory is what they wait for. Inner
  products are D (D + 1) / 2 per element, and processors run out of arithmetic at some ten domains. One domain alone is
  not written, so D = 1 moves a fifth of what D = 2 does: the exponent in bytes moved leaves this out of the slope;
* everything else in ``combine`` (strategy, sums over units, the record): 2 in D, on G small matrices; it must stay
  below 1 % of the time up to D = 16;
* ranks: every rank works on 1 / N of each gradient after a reduce-scatter. Here the ranks share one machine's
  processors and its memory, so the exponent tells about gloo and this machine, not about surgery.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from common import SHAPES, cost, count, give_memory_back, machine, seconds, surgery
from counterpoint.surgery import Surgeon

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Two-sided 95 % quantiles of Student's distribution for 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Times:
    """Seconds of one turn: everything, both passes over the gradients, and the rest of ``combine``."""

    whole: float
    gram: float
    write: float
    rest: float


@dataclass(frozen=True)
class Exponent:
    """Slope of log(time) over log(size) and half its 95 % interval."""

    slope: float
    margin: float

    def __str__(self) -> str:
        return f"{self.slope:.2f} +- {self.margin:.2f}"


def fit(points: list[tuple[float, float]]) -> Exponent:
    """Least squares through ``(log size, log time)``; NaN for fewer than two sizes."""
    x = [math.log(size) for size, _ in points]
    y = [math.log(time) for _, time in points]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    free = len(points) - 2
    if spread == 0:
        return Exponent(math.nan, math.nan)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    if free < 1:
        return Exponent(slope, math.nan)
    squares = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    quantile = T_95[free - 1] if free <= len(T_95) else 1.96 + 2.5 / free
    return Exponent(slope, quantile * math.sqrt(squares / free / spread))


def turns(shape: str, num_domains: int, options: argparse.Namespace) -> list[Times]:
    """Times of ``options.repetitions`` turns, the first one left out."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    named = {n: nn.Parameter(torch.zeros(s, device=device)) for n, s in SHAPES[shape].parameters().items()}
    parameters = list(named.values())
    gradients = [[torch.randn_like(p) for p in parameters] for _ in range(num_domains)]
    surgeon = Surgeon(named, options.strategy)
    inside: dict[str, float] = {}

    def clock(function: Callable[[], object]) -> float:
        found = cost(function, device)
        return found.processor if options.clock == "processor" else found.wall

    def timed(name: str, function: Callable[..., object], *args: object) -> object:
        found: list[object] = []
        inside[name] = inside.get(name, 0.0) + clock(lambda: found.append(function(*args)))
        return found[0]

    for name in ("gram", "write"):
        setattr(surgeon._passes, name, partial(timed, name, getattr(surgeon._passes, name)))
    combine = surgeon.combine
    surgeon.combine = partial(timed, "combine", combine)  # type: ignore[method-assign]
    found = []
    for _ in range(options.repetitions + 1):
        inside.clear()
        give_memory_back()
        whole = clock(lambda: surgery(surgeon, parameters, gradients))
        gram, write = inside["gram"], inside["write"]
        found.append(Times(whole, gram, write, inside["combine"] - gram - write))
        for gradient in gradients[0]:  # the sum was written into it; random numbers add up to larger ones
            gradient.mul_(0.5)
    return found[1:]


def middle(times: list[Times]) -> Times:
    """Median of each part."""
    return Times(*(statistics.median(asdict(t)[name] for t in times) for name in Times.__dataclass_fields__))


def gradients_moved(num_domains: float) -> float:
    """Gradients read or written by both passes: all read twice and one written, but one domain alone read once."""
    return 2 * num_domains + 1 if num_domains > 1 else 1


def table(
    title: str,
    found: dict[float, list[Times]],
    names: dict[float, str],
    moved: Callable[[float], float] | None = None,
) -> dict[str, object]:
    """Prints medians and exponents; gives both."""
    print(f"\n{title:12} {'whole ms':>9} {'gram ms':>9} {'write ms':>9} {'rest ms':>9} {'rest':>7}")
    for size, times in found.items():
        t = middle(times)
        print(
            f"{names[size]:12} {t.whole * 1e3:9.2f} {t.gram * 1e3:9.2f} {t.write * 1e3:9.2f} {t.rest * 1e3:9.3f} "
            f"{t.rest / t.whole:7.2%}",
            flush=True,
        )
    parts = {name: fit([(n, asdict(t)[name]) for n, ts in found.items() for t in ts]) for name in ("whole", "rest")}
    passes = fit([(n, t.gram + t.write) for n, ts in found.items() for t in ts])
    print(f"exponents: passes {passes}, rest {parts['rest']}, whole {parts['whole']}")
    if moved:
        parts["passes_by_bytes"] = fit([(moved(n), t.gram + t.write) for n, ts in found.items() for t in ts])
        print(f"           passes by bytes moved {parts['passes_by_bytes']}")
    rows = [{"size": size, **asdict(middle(times))} for size, times in found.items()]
    return {"rows": rows, "passes": asdict(passes), **{name: asdict(e) for name, e in parts.items()}}


def in_rank(rank: int, world: int, folder: str, options: argparse.Namespace) -> None:
    """One rank of the measurement over ranks; the first writes the seconds of every turn."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store-{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    torch.manual_seed(rank)
    named = {n: nn.Parameter(torch.zeros(s)) for n, s in SHAPES[options.rank_shape].parameters().items()}
    parameters = list(named.values())
    surgeon = Surgeon(named, options.strategy, average_over=dist.group.WORLD)
    found = []
    for _ in range(options.repetitions + 1):
        gradients = [[torch.randn_like(p) for p in parameters] for _ in range(options.fixed_domains)]
        dist.barrier()
        found.append(seconds(partial(surgery, surgeon, parameters, gradients), torch.device("cpu")))
    if rank == 0:
        Path(folder, f"{world}.json").write_text(json.dumps(found[1:]))
    dist.destroy_process_group()


def over_ranks(options: argparse.Namespace) -> dict[str, object]:
    """Prints and gives seconds by number of ranks, and the exponent."""
    found: dict[int, list[float]] = {}
    print(f"\n{'ranks':12} {'whole ms':>9}   (collect + combine with average_over, {options.rank_shape})")
    with tempfile.TemporaryDirectory() as folder:
        for world in options.ranks:
            mp.spawn(in_rank, args=(world, folder, options), nprocs=world)
            found[world] = json.loads(Path(folder, f"{world}.json").read_text())
            print(f"{world:<12} {statistics.median(found[world]) * 1e3:9.2f}", flush=True)
    exponent = fit([(world, time) for world, times in found.items() for time in times])
    print(f"exponent: {exponent}")
    return {"seconds": found, "whole": asdict(exponent)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda; ranks are always gloo processes on the processor")
    parser.add_argument("--strategy", default="mgs")
    parser.add_argument("--domains", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 12, 16])
    parser.add_argument("--shape", choices=SHAPES, default="100m", help="model for the growth with D")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1m", "3m", "10m", "30m", "100m", "300m", "1b"])
    parser.add_argument("--fixed-domains", type=int, default=2, help="D for the growth with parameters and ranks")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--rank-shape", choices=SHAPES, default="10m")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument(
        "--memory", type=float, default=12.0, help="gigabytes for gradients; larger models are left out"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="seconds on the wall, or of all threads, which hardly depend on what else the machine does",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, few domains, one and two ranks")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    options = parser.parse_args()
    if options.quick:
        options.domains, options.shape, options.shapes = [1, 2, 4], "tiny", ["tiny", "1m"]
        options.ranks, options.rank_shape, options.repetitions = options.ranks[:2], "tiny", 2
    return options


def main() -> None:
    options = arguments()
    facts = {**machine(torch.device(options.device)), "clock": options.clock}
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    result: dict[str, object] = {"machine": facts, "strategy": options.strategy}

    def fits(shape: str, num_domains: int) -> bool:
        return 4.0 * count(SHAPES[shape]) * num_domains <= options.memory * 1e9

    by_domains = {float(d): turns(options.shape, d, options) for d in options.domains if fits(options.shape, d)}
    result["domains"] = table(f"D, {options.shape}", by_domains, {d: f"{d:.0f}" for d in by_domains}, gradients_moved)
    names = {float(count(SHAPES[s])): s for s in options.shapes if fits(s, options.fixed_domains)}
    by_size = {size: turns(shape, options.fixed_domains, options) for size, shape in names.items()}
    result["parameters"] = table(f"P, D = {options.fixed_domains}", by_size, names)
    if options.ranks:
        result["ranks"] = over_ranks(options)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
