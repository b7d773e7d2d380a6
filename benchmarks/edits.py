"""How fast ``counterpoint diagnose edits`` reads a pair of checkpoints, beside the disk and beside a plain comparison.

A random pair with the tensor shapes of Llama-3.1-8B (as many of its layers as fit in --gigabytes) is written, measured
and removed. Four rates, in bytes of both checkpoints per second, all in one run and the last three in turns:

    disk      one thread reads both files from beginning to end, after their pages were dropped from memory
    cached    the same while their pages are in memory
    memory    torch reads both checkpoints, maps already in memory, and compares them: subtract, square, sum
    edits     everything that the command does, without and with the pages in memory

The target: edits, cold, no less than half the lower of disk and memory; edits, warm, no less than half of memory.

*Processors busy* tells whether the machine was free: ``edits, warm`` should keep as many busy as it has threads.

    python benchmarks/edits.py --gigabytes 6
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from common import machine
from counterpoint.diagnosis import edits
from counterpoint.diagnosis._edit_stream import default_threads

HIDDEN, INNER, KEY_VALUE, VOCABULARY, LAYERS = 4_096, 14_336, 1_024, 128_256, 32
READ = 8 << 20
BLOCK = 1 << 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6, help="of the pair; a whole 8B pair is 32")
    parser.add_argument("--changed", type=float, default=1.0, help="share of weights that the edit changes")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=3, help="turns; medians are printed")
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--quick", action="store_true", help="half a gigabyte, one turn")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    return argparse.Namespace(**vars(args) | {"gigabytes": 0.5, "repeats": 1}) if args.quick else args


def shapes(gigabytes: float, size: int) -> list[dict[str, tuple[int, ...]]]:
    """Shards of one checkpoint of the pair: a shard for the embedding, one for each layer."""
    room = gigabytes * 1e9 / 2 / size
    shards: list[dict[str, tuple[int, ...]]] = [{"model.norm.weight": (HIDDEN,)}]
    layer = HIDDEN * (2 * HIDDEN + 2 * KEY_VALUE + 3 * INNER)
    embedding = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    if room > 2 * VOCABULARY * HIDDEN:
        shards.append(embedding)
        room -= VOCABULARY * HIDDEN
    for number in range(max(1, min(LAYERS, int(room // layer)))):
        at = f"model.layers.{number}"
        own = {f"{at}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qo"}
        own |= {f"{at}.self_attn.{x}_proj.weight": (KEY_VALUE, HIDDEN) for x in "kv"}
        own |= {f"{at}.mlp.{x}_proj.weight": (INNER, HIDDEN) for x in ("gate", "up")}
        own |= {f"{at}.mlp.down_proj.weight": (HIDDEN, INNER)}
        shards.append(own | {f"{at}.{x}_layernorm.weight": (HIDDEN,) for x in ("input", "post_attention")})
    return shards


def write_pair(folder: Path, args: argparse.Namespace) -> list[Path]:
    """Both checkpoints, and the folders they are in."""
    dtype = getattr(torch, args.dtype)
    shards = shapes(args.gigabytes, dtype.itemsize)
    generator = torch.Generator().manual_seed(0)
    folders = [folder / "base", folder / "after"]
    for path in folders:
        path.mkdir()
        (path / "config.json").write_text("{}")
    maps: list[dict[str, str]] = [{}, {}]
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        base = {key: torch.randn(shape, generator=generator).mul_(0.02) for key, shape in shard.items()}
        save_file({key: tensor.to(dtype) for key, tensor in base.items()}, folders[0] / name)
        for tensor in base.values():
            edit = torch.randn(tensor.shape, generator=generator).mul_(1e-3)
            if args.changed < 1:
                edit.mul_(torch.rand(tensor.shape, generator=generator) < args.changed)
            tensor.add_(edit)
        save_file({key: tensor.to(dtype) for key, tensor in base.items()}, folders[1] / name)
        for weight_map in maps:
            weight_map.update(dict.fromkeys(shard, name))
    for path, weight_map in zip(folders, maps, strict=True):
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    os.sync()
    return folders


def files(folders: list[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def forget(folders: list[Path]) -> None:
    """Drops the files' pages from memory."""
    for file in files(folders):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(folders: list[Path]) -> None:
    buffer = bytearray(READ)
    for file in files(folders):
        with file.open("rb", buffering=0) as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while handle.readinto(buffer):
                pass


def plain(folders: list[Path]) -> None:
    """Subtract, square, sum: over blocks, on as many threads as ``edits`` uses, files mapped."""
    torch.set_num_threads(1)
    pairs = zip(files(folders[:1]), files(folders[1:]), strict=True)

    def compare(pair: tuple[Path, Path]) -> float:
        total = 0.0
        with safe_open(pair[0], "pt") as base, safe_open(pair[1], "pt") as after:
            for name in base.keys():  # noqa: SIM118
                before, now = base.get_tensor(name).view(-1), after.get_tensor(name).view(-1)
                for a, b in zip(before.split(BLOCK), now.split(BLOCK), strict=True):
                    edit = b.float() - a.float()
                    total += float(torch.dot(edit, edit))
        return total

    with ThreadPoolExecutor(default_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        sum(pool.map(compare, pairs))


def measure(folders: list[Path]) -> None:
    edits(folders[0], [folders[1]])


def rate(work: Callable[[list[Path]], None], folders: list[Path], cold: bool) -> tuple[float, float]:
    """Bytes of both checkpoints per second, and how many processors were busy with it on average."""
    total = sum(file.stat().st_size for file in files(folders))
    if cold:
        forget(folders)
    else:
        read(folders)
    start, busy = time.perf_counter(), time.process_time()
    work(folders)
    seconds = time.perf_counter() - start
    return total / seconds, (time.process_time() - busy) / seconds


def main() -> None:
    args = arguments()
    folder = Path(tempfile.mkdtemp(prefix="edits-", dir=args.folder))
    try:
        if shutil.disk_usage(folder).free < args.gigabytes * 1.2e9:
            raise SystemExit(f"{folder}: not enough room for {args.gigabytes:g} GB. Lower --gigabytes or set --folder.")
        folders = write_pair(folder, args)
        size = sum(file.stat().st_size for file in files(folders)) / 1e9
        turns: dict[str, list[float]] = {}
        busy: dict[str, list[float]] = {}
        for _ in range(args.repeats):
            for name, work, cold in (
                ("disk", read, True),
                ("edits, cold", measure, True),
                ("cached", read, False),
                ("memory", plain, False),
                ("edits, warm", measure, False),
            ):
                per_second, processors = rate(work, folders, cold)
                turns.setdefault(name, []).append(per_second / 1e9)
                busy.setdefault(name, []).append(processors)
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(rates) for name, rates in turns.items()}
    bound = min(medians["disk"], medians["memory"])
    result = machine(torch.device("cpu")) | {
        "gigabytes": round(size, 2),
        "dtype": args.dtype,
        "changed": args.changed,
        "threads of edits": default_threads(),
        "GB/s": {name: round(value, 2) for name, value in medians.items()},
        "GB per processor second": {
            name: round(statistics.median(a / b for a, b in zip(turns[name], busy[name], strict=True)), 2)
            for name in turns
        },
        "processors busy": {name: round(statistics.median(own), 2) for name, own in busy.items()},
        "all turns": {name: [round(value, 2) for value in rates] for name, rates in turns.items()},
        "cold over lower of disk and memory": round(medians["edits, cold"] / bound, 2),
        "warm over memory": round(medians["edits, warm"] / medians["memory"], 2),
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
