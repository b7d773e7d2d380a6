"""What it costs to reduce the gradients of D domains over ranks and combine them: two ways, side by side.

    plain      all-reduce every domain's gradient, then surgery on whole gradients on every rank: D all-reduces
    scattered  reduce-scatter every domain's gradient, surgery on shards, all-gather one: (D + 1) / 2 all-reduces

Both give the same update, which is checked. Ranks are gloo processes of this machine:

    python benchmarks/reduce.py --ranks 4 --domains 2 3 4
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from counterpoint.surgery import Surgeon

WIDTH = 512


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="gloo processes")
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 3, 4], help="domains D")
    parser.add_argument("--millions", type=float, default=16, help="parameters, in millions")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way; medians are printed")
    parser.add_argument("--json", type=Path, help="where to write the results")
    return parser.parse_args()


def model(millions: float) -> dict[str, nn.Parameter]:
    count = max(2, round(millions * 1e6 / WIDTH**2))
    shape = (WIDTH, WIDTH)
    return {f"layers.{i // 2}.mlp.{i % 2}.weight": nn.Parameter(torch.zeros(shape)) for i in range(count)}


def fill(params: dict[str, nn.Parameter], gradients: list[torch.Tensor]) -> None:
    for param, gradient in zip(params.values(), gradients, strict=True):
        param.grad = gradient.clone()


def plain(params: dict[str, nn.Parameter], domains: list[list[torch.Tensor]]) -> list[float]:
    """Seconds for reduction, and for surgery."""
    world = dist.get_world_size()
    surgeon = Surgeon(params)
    seconds = [0.0, 0.0]
    for number, gradients in enumerate(domains):
        fill(params, gradients)
        start = ready()
        for bucket in buckets([param.grad for param in params.values() if param.grad is not None]):
            flat = torch._utils._flatten_dense_tensors(bucket).div_(world)
            dist.all_reduce(flat)
            parts = torch._utils._unflatten_dense_tensors(flat, bucket)
            torch._foreach_copy_(bucket, list(parts))
        surgeon.collect(str(number))
        seconds[0] += time.perf_counter() - start
    start = ready()
    surgeon.combine()
    seconds[1] = time.perf_counter() - start
    return seconds


def scattered(params: dict[str, nn.Parameter], domains: list[list[torch.Tensor]]) -> list[float]:
    """Seconds for everything, which is not to be told apart."""
    surgeon = Surgeon(params, average_over=dist.group.WORLD)
    for number, gradients in enumerate(domains):
        fill(params, gradients)
        surgeon.collect(str(number))
    start = ready()
    surgeon.combine()
    return [time.perf_counter() - start]


def buckets(gradients: list[torch.Tensor], longest: int = 25 << 20) -> list[list[torch.Tensor]]:
    """Gradients in buckets of 25 MB, as DDP reduces them."""
    found: list[list[torch.Tensor]] = [[]]
    for gradient in gradients:
        if sum(g.nbytes for g in found[-1]) + gradient.nbytes > longest and found[-1]:
            found.append([])
        found[-1].append(gradient)
    return found


def ready() -> float:
    dist.barrier()
    return time.perf_counter()


def rank_main(rank: int, world: int, store: str, args: argparse.Namespace, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    params = model(args.millions)
    rows = []
    for num_domains in args.domains:
        generator = torch.Generator().manual_seed(rank)
        domains = [[torch.randn(p.shape, generator=generator) for p in params.values()] for _ in range(num_domains)]
        times: dict[str, list[list[float]]] = {"plain": [], "scattered": []}
        updates = []
        for _ in range(args.repeats + 1):  # the first turn is not counted
            for way in (plain, scattered):
                times[way.__name__].append(way(params, domains))
                updates.append([param.grad for param in params.values()])
        for first, second in zip(updates[0], updates[1], strict=True):
            assert first is not None
            torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
        del updates, domains
        medians = {w: [statistics.median(t[i] for t in ts[1:]) for i in range(len(ts[0]))] for w, ts in times.items()}
        rows.append({"ranks": world, "domains": num_domains} | medians)
    dist.destroy_process_group()
    if rank == 0:
        Path(results).write_text(json.dumps(rows))


def main() -> None:
    args = arguments()
    print(f"torch {torch.__version__}, {os.cpu_count()} CPUs, {args.millions:g}M parameters, float32, gloo; seconds")
    print("ranks  D   all-reduces + surgery   scattered   ratio   bytes' ratio (D + 1) / 2D")
    rows = []
    for world in args.ranks:
        with tempfile.TemporaryDirectory() as folder:
            results = str(Path(folder) / "results.json")
            mp.spawn(rank_main, (world, str(Path(folder) / "store"), args, results), nprocs=world)
            rows += json.loads(Path(results).read_text())
    for row in rows:
        reduction, surgery = row["plain"]
        (scatter,) = row["scattered"]
        d = row["domains"]
        print(
            f"{row['ranks']:5d} {d:2d}   {reduction:8.3f} + {surgery:8.3f}     {scatter:9.3f}   "
            f"{scatter / (reduction + surgery):5.2f}   {(d + 1) / (2 * d):5.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
