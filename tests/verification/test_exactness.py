"""Every case of the exactness suite on 1, 2 and 4 gloo ranks, each a test of its own; and the planted bugs.

All cases of one world and dtype run in one set of processes, started by the first test that asks for them.
"""

import functools

import pytest

from counterpoint.verification import CASES, CONTROLS
from ranks_helper import run_ranks
from verification.suites import run_on_ranks

ON_ONE = [name for name in CASES if name.startswith("one process")]
ON_SEVERAL = [name for name in CASES if not name.startswith(("one process", "hsdp", "fsdp2 x"))]
ON_FOUR = [
    "ddp, uneven",
    "ddp, averaged, own ways",
    "ddp, averaged, experts",
    "fsdp2, uneven rows",
    "fsdp2, uneven shards",
    "fsdp2, experts",
    "hsdp",
    "hsdp, LoRA",
    "tensor parallel",
    "fsdp2 x tensor parallel",
    "fsdp2 x tensor parallel, sequence",
    "fsdp2 x tensor parallel, uneven",
]
CORE = ["ddp", "ddp, averaged, own ways", "fsdp2", "fsdp2, uneven shards"]
CORE_ON_FOUR = ["ddp, averaged, own ways", "fsdp2, uneven shards", "hsdp", "fsdp2 x tensor parallel"]

WORLDS = {
    (1, "float32"): ON_ONE,
    (1, "float64"): ON_ONE,
    (2, "float32"): CORE,
    (2, "float64"): ON_SEVERAL,
    (4, "float32"): CORE_ON_FOUR,
    (4, "float64"): ON_FOUR,
}
"""float64 sees most, and sees it by twelve digits; float32 is what training uses."""


@functools.cache
def outcomes(world, dtype):
    controls = list(CONTROLS) if world > 1 and dtype == "float64" else []
    by_rank = run_ranks(run_on_ranks, world, dtype, WORLDS[world, dtype], controls)
    assert all(theirs.keys() == by_rank[0].keys() for theirs in by_rank)
    assert all(theirs[name].status == by_rank[0][name].status for theirs in by_rank for name in theirs)
    return by_rank[0]


def told(outcome):
    errors = ", ".join(f"{quantity} {one.error:.1e} of {one.tolerance:.0e}" for quantity, one in outcome.errors.items())
    return f"{outcome.status}: {outcome.note or errors}"


@pytest.mark.parametrize(("world", "dtype", "name"), [(*key, name) for key, names in WORLDS.items() for name in names])
def test_is_exact(world, dtype, name):
    outcome = outcomes(world, dtype)[name]
    assert outcome.status == "held", told(outcome)
    assert set(outcome.errors) == {"gradients", "Grams", "weights", "parameters", "copies"}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", CONTROLS)
def test_a_planted_bug_is_seen(world, name):
    outcome = outcomes(world, "float64")[name]
    assert outcome.status == "held", told(outcome)


def test_a_planted_bug_is_a_large_error_and_no_rounding():
    found = outcomes(2, "float64")
    assert found["ddp, orders differ"].errors["gradients"].error > 0.5
    assert found["fsdp2, orders differ"].errors["gradients"].error > 0.5
    assert found["sync_each_batch off"].errors["gradients"].error > 0.5
    assert found["shard-local Grams"].errors["Grams"].error > 0.5
    assert found["replicas counted twice"].errors["Grams"].error == pytest.approx(1)
    assert found["unseeded order"].errors["weights"].error > 0.01
    assert found["unseeded order"].errors["parameters"].error > 0.001
