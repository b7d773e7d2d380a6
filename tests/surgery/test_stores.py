"""Buffers in bfloat16 and in host memory give the update of buffers on the device, and hold what they say."""

import pytest
import torch
from torch import nn

from counterpoint.errors import StrategyError
from counterpoint.surgery import Surgeon
from counterpoint.surgery._passes import stores
from counterpoint.surgery._passes.stores import CompactStore, DeviceStore, HostStore, add_up, build_store

SHAPES = {
    "layers.0.mlp.up.weight": (64, 8),
    "layers.0.mlp.bias": (7,),
    "layers.1.mlp.up.weight": (8, 64),
    "lm_head.w": (9,),
}


class CountingCopies:
    """Host memory played by more CPU memory; what is on its way is NaN until somebody waits."""

    devices = (torch.device("cpu"), torch.device("meta"))

    def __init__(self):
        self.pinned, self.loads, self._late = 0, 0, []

    def empty(self, like):
        self.pinned += 1
        return torch.full_like(like, torch.nan)

    def to_host(self, sources, targets):
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)
            source.fill_(torch.nan)  # the device's memory is somebody else's now

    def to_device(self, source, device):
        self.loads += 1
        copy = torch.full_like(source, torch.nan, device=device)
        self._late.append((copy, source))
        return copy

    def wait(self):
        for copy, source in self._late:
            copy.copy_(source)
        self._late.clear()


def run(monkeypatch, store, steps=2, collects=1):
    monkeypatch.setitem(stores.STORES, "device", lambda devices: store)
    params = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SHAPES.items()}
    surgeon = Surgeon(params, "mgs")
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for domain in ("a", "b", "c"):
            for i in range(collects):
                for name, param in params.items():
                    if not (domain == "b" and name == "lm_head.w"):
                        param.grad = torch.randn(SHAPES[name], generator=generator)
                surgeon.collect(domain, last=domain == "c" and i == collects - 1)
        record = surgeon.combine()
    return record, [param.grad for param in params.values()]


@pytest.mark.parametrize("collects", [1, 3])
def test_host_memory_gives_the_same_update_and_is_used_again(monkeypatch, collects):
    expected = run(monkeypatch, DeviceStore(), collects=collects)
    copies = CountingCopies()
    found = run(monkeypatch, HostStore(copies), collects=collects)
    torch.testing.assert_close(found[0].gram_UDD, expected[0].gram_UDD, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=1e-6)
    assert expected[0].weights_GD.ne(1).any(), "nothing conflicts, so the weights were not looked at"
    kept = 2 * len(SHAPES) - 1 + (len(SHAPES) if collects > 1 else 0)  # a, b; c waits in between if it comes thrice
    assert copies.pinned == kept


def test_without_waiting_the_copies_would_not_be_there(monkeypatch):
    copies = CountingCopies()
    copies.wait = lambda: None
    record, _ = run(monkeypatch, HostStore(copies), steps=1)
    assert not record.finite


def test_gradients_go_back_to_the_device_each_came_from():
    """As with a model whose layers lie on several devices; one on a device that is not copied from stays there."""
    copies = CountingCopies()
    copies.devices = (torch.device("meta"),)
    store = HostStore(copies)
    gradients = [torch.ones(3, device="meta"), torch.ones(3), None]
    held = store.keep(list(gradients))
    assert copies.pinned == 1
    assert held[1] is gradients[1]
    for found in (store.load(held), *(blocks for _, (blocks,) in store.batches([held]))):
        assert [g.device.type for g in found if g is not None and g is not gradients[1]] in (["meta"], [])
    assert [g.device.type for g in store.load(held)[:2]] == ["meta", "cpu"]
    store.release(held)
    assert store.keep(list(gradients))[0] is held[0]


def test_a_stretch_is_no_longer_than_the_longest_parameter():
    held = [
        [torch.zeros(n) for n in (5, 10, 4, 4, 4, 9)],
        [torch.zeros(5), None, *[torch.zeros(n) for n in (4, 4, 4, 9)]],
    ]
    assert stores._stretches(held) == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]


def test_bfloat16_rounds_all_but_the_last_domain(monkeypatch):
    expected = run(monkeypatch, DeviceStore())
    found = run(monkeypatch, CompactStore())
    torch.testing.assert_close(found[0].gram_UDD, expected[0].gram_UDD, rtol=0.02, atol=0.5)
    difference = max((a - b).abs().max().item() for a, b in zip(found[1], expected[1], strict=True))
    assert 0 < difference < 0.05
    last = found[0].gram_UDD[:, 2, 2]
    torch.testing.assert_close(last, expected[0].gram_UDD[:, 2, 2], rtol=0, atol=0)
    assert all(grad.dtype == torch.float32 for grad in found[1])


def test_bfloat16_adds_micro_batches_in_full_precision_before_rounding():
    store = CompactStore()
    held = store.keep([torch.tensor([1.0])])
    assert held[0].dtype == torch.bfloat16
    held = store.keep(
        add_up(held, [torch.tensor([0.51 / 128])])
    )  # half a step of bfloat16: kept by one rounding to nearest
    assert held[0].item() == pytest.approx(1 + 1 / 128)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(StrategyError, match=r"buffers='bfloat' is unknown: .*bfloat16"):
        build_store("bfloat", {torch.device("cpu")})
