"""Runs cases and controls on all ranks and joins what the ranks saw."""

import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist

from ..errors import ConfigError, UnsupportedError, nearest
from .case import Case
from .cases import CASES
from .controls import CONTROLS, FACTOR, Control
from .measure import Errors, Measured, run_case
from .world import World

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ImportError)
"""What a back end raises for something it cannot do. The suite reports it and goes on: here failure is a result."""

TIMEOUT = timedelta(seconds=120)
"""After which a collective that some rank does not reach fails."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Outcome:
    """What came of one case or control, on all ranks together."""

    name: str
    what: str
    status: str
    """``held``, ``failed`` or ``not run``."""
    errors: Errors = field(default_factory=dict)
    """The largest of all ranks."""
    note: str = ""
    """Why it failed or was not run."""
    seconds: float = 0.0
    torn: bool = False
    """It broke off on some ranks only, so that the ranks no longer agree on what comes next."""


@dataclass(frozen=True)
class Report:
    """All outcomes, cases and planted bugs apart."""

    world: World
    cases: list[Outcome]
    controls: list[Outcome]
    seconds: float

    @property
    def failed(self) -> list[Outcome]:
        """The cases that did not hold, and the planted bugs that were not seen."""
        return [outcome for outcome in (*self.cases, *self.controls) if outcome.status == "failed"]


@contextmanager
def open_world(device: str | None = None, dtype: str = "float32", domains: int = 3) -> Iterator[World]:
    """The ranks that ``torchrun`` started, or one process; raises ``UnsupportedError`` for a device that is not there.

    A process group that exists already is used as it is.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype {dtype!r}: {nearest(dtype, DTYPES)}")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    place = _place(device, int(os.environ.get("LOCAL_RANK", "0")))
    torch.set_float32_matmul_precision("highest")
    _quiet()
    mine = size > 1 and not dist.is_initialized()
    if mine:
        backend = "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        rank = dist.get_rank() if size > 1 else 0
        aside = dist.new_group(backend="gloo", timeout=3 * TIMEOUT) if size > 1 else None
        yield World(rank, size, place, DTYPES[dtype], domains, aside)
    finally:
        if mine:
            dist.destroy_process_group()


def _quiet() -> None:
    """Keeps torch from advising on the speed of meshes that are here to be exact."""
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")


def _place(device: str | None, local_rank: int) -> torch.device:
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if kind != "cuda" or local_rank >= count:
        raise UnsupportedError(
            f"The device {kind!r} is not there for local rank {local_rank}: {count} CUDA devices are visible. "
            "Start one process per GPU, or give --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def select(only: Iterable[str]) -> tuple[dict[str, Case], dict[str, Control]]:
    """The cases and controls whose names begin with one of ``only``; all where it is empty."""
    only = list(only)
    known = [*CASES, *CONTROLS]
    for start in only:
        if not any(name.startswith(start) for name in known):
            raise ConfigError(f"No case or planted bug begins with {start!r}: {nearest(start, known)}")
    starts = tuple(only) or ("",)
    return (
        {name: case for name, case in CASES.items() if name.startswith(starts)},
        {name: control for name, control in CONTROLS.items() if name.startswith(starts)},
    )


def run_suite(
    world: World,
    cases: Mapping[str, Case] = CASES,
    controls: Mapping[str, Control] = CONTROLS,
    announce: Callable[[str], None] = lambda name: None,
) -> Report:
    """Runs cases and planted bugs; ``announce`` is told each name before it runs. All ranks call it together."""
    began = time.perf_counter()
    runs = [_Run(name, case, partial(run_case, case, world), _all_held) for name, case in cases.items()]
    runs += [_Run(name, control, partial(control.run, world), _all_seen) for name, control in controls.items()]
    outcomes: list[Outcome] = []
    torn = ""
    for run in runs:
        announce(run.name)
        outcomes.append(_left_out(run, world, torn) or _outcome(run, world))
        torn = torn or (run.name if outcomes[-1].torn else "")
    return Report(world, outcomes[: len(cases)], outcomes[len(cases) :], time.perf_counter() - began)


@dataclass(frozen=True)
class _Run:
    name: str
    entry: Case | Control
    measure: Callable[[], Errors]
    passed: Callable[[Errors], bool]


def _left_out(run: _Run, world: World, torn: str) -> Outcome | None:
    reason = run.entry.needs(world) or (f"after {torn!r} broke off on some ranks" if torn else "")
    return Outcome(run.name, run.entry.what, "not run", note=reason) if reason else None


def _outcome(run: _Run, world: World) -> Outcome:
    began = time.perf_counter()
    errors: Errors = {}
    note = ""
    try:
        errors = run.measure()
    except FAILURES as error:
        note = f"{type(error).__name__}: {str(error).strip()}"
        # at once, because the ranks that now wait for this one may be ended before they can tell
        print(f"{run.name}, rank {world.rank}: {note}", file=sys.stderr, flush=True)
    together = world.gather((errors, note), aside=True)
    seconds = time.perf_counter() - began
    notes = [f"rank {rank}: {theirs}" for rank, (_, theirs) in enumerate(together) if theirs]
    if notes:
        torn = len(notes) < world.size
        return Outcome(run.name, run.entry.what, "failed", note=notes[0], seconds=seconds, torn=torn)
    joined = {quantity: _largest([theirs[quantity] for theirs, _ in together]) for quantity in errors}
    status = "held" if run.passed(joined) else "failed"
    return Outcome(run.name, run.entry.what, status, joined, seconds=seconds)


def _largest(measured: list[Measured]) -> Measured:
    return max(measured, key=lambda one: math.inf if math.isnan(one.error) else one.error)


def _all_held(errors: Errors) -> bool:
    return all(measured.held for measured in errors.values())


def _all_seen(errors: Errors) -> bool:
    return all(measured.error > FACTOR * measured.tolerance for measured in errors.values())
