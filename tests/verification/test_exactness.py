"""Every case of the exactness suite on 1, 2 and 4 gloo ranks, each a test of its own; and the planted bugs.

All cases of one world run in one set of processes, started by the first test that asks for them.
"""

import functools

import pytest

from counterpoint.verification import CASES, CONTROLS
from ranks_helper import run_ranks
from verification.suites import run_on_ranks

ONE = [name for name in CASES if name.startswith("one process")]
TWO = [name for name in CASES if not name.startswith(("one process", "hsdp", "fsdp2 x"))]
CORE = ["ddp", "ddp, averaged, own ways", "fsdp2", "fsdp2, uneven shards"]
FOUR = [
    "ddp, uneven",
    "ddp, averaged, own ways",
    "ddp, averaged, experts",
    "fsdp2, uneven shards",
    "hsdp",
    "hsdp, CPU offload, checkpointing, uneven rows",
    "hsdp, LoRA",
    "fsdp2 x tensor parallel",
    "fsdp2 x tensor parallel, sequence",
    "fsdp2 x tensor parallel, uneven",
    "fsdp2 x tensor parallel, LoRA",
]
CORE_OF_FOUR = ["ddp, averaged, own ways", "fsdp2, uneven shards", "hsdp"]

BUGS_OF_FOUR = ["fsdp2, orders differ", "fsdp2, orders differ, told", "shard-local Grams", "replicas counted twice"]

# float64 sees most, by twelve digits; float32 is what training uses
WORLDS = {
    1: {"float32": ONE, "float64": [name for name in ONE if "compiled" not in name]},
    2: {"float32": CORE, "float64": [*TWO, *CONTROLS]},
    4: {"float32": CORE_OF_FOUR, "float64": [*FOUR, *BUGS_OF_FOUR]},
}


@functools.cache
def outcomes(world):
    """The outcomes by dtype and name, on which all ranks agree."""
    by_rank = run_ranks(run_on_ranks, world, WORLDS[world])
    assert all(theirs.keys() == by_rank[0].keys() for theirs in by_rank)
    assert all(theirs[key].status == by_rank[0][key].status for theirs in by_rank for key in theirs)
    return by_rank[0]


def every(entries):
    return [
        (world, dtype, name)
        for world, names_by_dtype in WORLDS.items()
        for dtype, names in names_by_dtype.items()
        for name in names
        if name in entries
    ]


def told(outcome):
    errors = ", ".join(f"{quantity} {one.error:.1e} of {one.tolerance:.0e}" for quantity, one in outcome.errors.items())
    return f"{outcome.status}: {outcome.note or errors}"


@pytest.mark.parametrize(("world", "dtype", "name"), every(CASES))
def test_is_exact(world, dtype, name):
    outcome = outcomes(world)[dtype, name]
    assert outcome.status == "held", told(outcome)
    assert set(outcome.errors) == {"gradients", "Grams", "weights", "parameters", "copies"}


@pytest.mark.parametrize(("world", "dtype", "name"), every(CONTROLS))
def test_a_planted_bug_is_seen(world, dtype, name):
    outcome = outcomes(world)[dtype, name]
    assert outcome.status == "held", told(outcome)


def test_every_case_is_tested_somewhere():
    assert {name for _, _, name in every(CASES)} == set(CASES)


def test_a_planted_bug_is_a_large_error_and_no_rounding():
    found = {name: outcome for (dtype, name), outcome in outcomes(2).items() if dtype == "float64"}
    assert found["ddp, orders differ"].errors["gradients"].error > 0.5
    assert found["fsdp2, orders differ"].errors["gradients"].error > 0.5
    assert found["sync_each_batch off"].errors["gradients"].error > 0.5
    assert found["shard-local Grams"].errors["Grams"].error > 0.5
    assert found["replicas counted twice"].errors["Grams"].error == pytest.approx(1)
    assert found["unseeded order"].errors["weights"].error > 0.01
    assert found["unseeded order"].errors["parameters"].error > 0.001
