"""``StreamCopies`` without a GPU: its own lines under a detector of races between streams.

Streams are played by vector clocks. Every torch operation runs at once, on the CPU, and is noted on the stream that is
current: two operations on one tensor, one of which writes, must be ordered by waits where their streams differ. Memory
is reused as CUDA's allocator does: when a tensor is freed, at once on the stream it was made on, except where
``record_stream`` told of another stream's use.
"""

import contextlib
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterpoint.surgery import Surgeon
from counterpoint.surgery._passes import stores
from counterpoint.surgery._passes.stores import DeviceStore, HostStore, StreamCopies

CPU = torch.device("cpu")
SHAPES = {"layers.0.mlp.up.weight": (64, 8), "layers.0.mlp.bias": (7,), "layers.1.mlp.up.weight": (8, 64)}


class Stream:
    def __init__(self, machine, name):
        self.machine, self.name = machine, name
        self.clock = {}

    def wait_stream(self, other):
        self.machine.free()
        if self.machine.forgets != (self.name, "waits"):
            for name, time in other.clock.items():
                self.clock[name] = max(self.clock.get(name, 0), time)


@dataclass
class Memory:
    """One storage: the stream it was made on, every use (stream, time, whether it wrote), and who was recorded."""

    alive: StorageWeakRef
    stream: Stream
    uses: list = field(default_factory=list)
    recorded: set = field(default_factory=set)


class Machine(TorchDispatchMode):
    """A device module and the operations on its streams; ``races`` lists what no wait orders."""

    def __init__(self, forgets=None):
        super().__init__()
        self.forgets = forgets
        self.main, self.side = Stream(self, "main"), None
        self.now = self.main
        self.memories, self.races, self.pinned = {}, [], 0

    def Stream(self, device):
        assert self.side is None
        self.side = Stream(self, "side")
        return self.side

    def current_stream(self, device):
        return self.now

    @contextlib.contextmanager
    def stream(self, stream):
        self.now, before = stream, self.now
        yield
        self.now = before

    def record(self, tensor, stream):
        if self.forgets != (stream.name, "recorded"):
            self.memories[tensor.untyped_storage()._cdata].recorded.add(stream.name)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.free()
        out = function(*args, **(kwargs or {}))
        written = [
            a for a, s in zip(args, function._schema.arguments, strict=False) if s.alias_info and s.alias_info.is_write
        ]
        if function._schema.returns and not any(result.alias_info for result in function._schema.returns):
            written.append(out)
        self.now.clock[self.now.name] = self.now.clock.get(self.now.name, 0) + 1
        for things, writes in ((written, True), ((args, kwargs), False)):
            for tensor in tree_leaves(things):
                if isinstance(tensor, torch.Tensor):
                    self.use(tensor, writes, str(function))
        return out

    def use(self, tensor, writes, what):
        storage = tensor.untyped_storage()
        memory = self.memories.setdefault(storage._cdata, Memory(StorageWeakRef(storage), self.now))
        self.check(memory, self.now, writes, what)
        memory.uses.append((self.now.name, self.now.clock[self.now.name], writes))

    def check(self, memory, stream, writes, what, but=()):
        for name, time, wrote in memory.uses:
            if (writes or wrote) and name not in (stream.name, *but) and stream.clock.get(name, 0) < time:
                self.races.append(f"{what} on {stream.name} does not wait for {name}")

    def free(self):
        """What was freed since the last look may be written by the stream it was made on, whatever comes next there."""
        for key in [key for key, memory in self.memories.items() if memory.alive.expired()]:
            memory = self.memories.pop(key)
            self.check(memory, memory.stream, True, "reuse of memory", memory.recorded)


@pytest.fixture
def play(monkeypatch):
    """Runs steps of a Surgeon whose gradients wait in host memory; gives the machine, the record and the update."""
    empty, to = torch.empty, torch.Tensor.to

    def run(forgets=None, collects=1, store=None):
        machine = Machine(forgets)

        def pinned(*args, pin_memory=False, **options):
            machine.pinned += pin_memory
            return empty(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_device_module", lambda device: machine)
            patched.setattr(torch, "empty", pinned)
            patched.setattr(torch.Tensor, "record_stream", lambda tensor, stream: machine.record(tensor, stream))
            patched.setattr(
                torch.Tensor,
                "to",
                lambda tensor, *a, non_blocking=False, **o: tensor.clone() if non_blocking else to(tensor, *a, **o),
            )
            patched.setitem(stores.STORES, "cpu", lambda devices: store or HostStore(StreamCopies({CPU})))
            return machine, *_steps(machine, collects)

    return run


def _steps(machine, collects):
    params = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    surgeon = Surgeon(params, "mgs", buffers="cpu")
    generator = torch.Generator().manual_seed(3)
    with machine:
        for _ in range(2):
            for i in range(3 * collects):
                for name, param in params.items():
                    param.grad = torch.randn(SHAPES[name], generator=generator)
                surgeon.collect("abc"[i // collects], last=i == 3 * collects - 1)
            record = surgeon.combine()
            update = [param.grad.clone() for param in params.values()]
        machine.free()
    return record, update


@pytest.mark.parametrize("collects", [1, 3])
def test_no_stream_reads_or_reuses_what_another_still_works_on(play, collects):
    machine, record, update = play(collects=collects)
    assert machine.races == []
    assert machine.pinned > 0
    _, expected_record, expected = play(collects=collects, store=DeviceStore())
    assert expected_record.weights_GD.ne(1).any(), "nothing conflicts, so the weights were not looked at"
    torch.testing.assert_close(record.gram_UDD, expected_record.gram_UDD)
    torch.testing.assert_close(update, expected)


@pytest.mark.parametrize(
    ("forgets", "race"),
    [
        (("side", "waits"), "copy_.default on side does not wait for main"),
        (("main", "waits"), "on main does not wait for side"),
        (("side", "recorded"), "reuse of memory on main does not wait for side"),
        (("main", "recorded"), "reuse of memory on side does not wait for main"),
    ],
)
def test_a_missing_wait_or_record_is_a_race(play, forgets, race):
    machine, _, _ = play(forgets)
    assert any(race in found for found in machine.races), machine.races[:5]
