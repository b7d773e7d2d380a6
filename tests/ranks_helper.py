"""Runs a function on several gloo ranks, each a process of its own on this machine."""

import gc
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from multiprocessing.context import BaseContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PRELOADED = [
    *("torch", "peft", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"),
    *("pytest", "counterpoint.surgery", "counterpoint.training", "counterpoint.engine", "counterpoint.verify"),
]
"""Imported once by the server that ranks are forked from, so that a rank starts in milliseconds: importing TRL takes
each of them longer than most tests."""

TIMEOUT = timedelta(seconds=60)
"""After which a collective that some rank does not reach fails instead of waiting."""


def forking() -> BaseContext:
    """How processes are started here: forked from a server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """What ``function(*args)`` returns on each of ``world`` ranks; the first rank's error if any raises."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(world, forking()) as pool:
        store = str(Path(folder) / "store")
        futures = [pool.submit(_rank, rank, world, store, function, args) for rank in range(world)]
        wait(futures)
        outcomes = [future.result() for future in futures]
    return _results(outcomes)


def _results(outcomes: Sequence[tuple[Any, BaseException | None, str]]) -> list[Any]:
    errors = [(error, trace) for _, error, trace in outcomes if error is not None]
    # a rank whose partner raised fails in a collective; the partner's own error is the one worth reading
    errors.sort(key=lambda pair: type(pair[0]).__module__.startswith(("torch", "builtins")))
    if errors:
        error, trace = errors[0]
        error.add_note(trace)
        raise error
    return [result for result, _, _ in outcomes]


def _rank(
    rank: int, world: int, store: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Any, BaseException | None, str]:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "OMP_WAIT_POLICY": "PASSIVE"}
    gc.freeze()  # what the server imported is no garbage
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=TIMEOUT)
    dist.barrier()  # a rank that has ended at once would be missing to one that still connects
    try:
        return function(*args), None, ""
    except BaseException as error:
        return None, error, traceback.format_exc()
    finally:
        dist.destroy_process_group()
