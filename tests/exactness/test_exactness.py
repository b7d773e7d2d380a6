"""Every case on 1, 2 and 4 gloo ranks, each a test of its own; and the planted bugs.

The cases of one world run in one set of processes, started by the first test that asks for them: the command's own
quickly, all others where slow tests run.
"""

import functools

import pytest

from counterpoint.verify import CASES
from counterpoint.verify import PLANTED as COMMAND_PLANTED
from exactness.variants import ALL, PLANTED, VARIANTS, ddp, fsdp, is_refused, run_on_ranks
from ranks_helper import run_ranks

ONE = [name for name in VARIANTS if name.startswith("alone")]
TWO = [name for name, case in (VARIANTS | PLANTED).items() if case.ranks[0] == 2]
FOUR = ["averaged", "experts", "fsdp2", "hsdp", "tensor parallel", "orders differ under fsdp2", "Grams of shards"]

# float64 sees most, by twelve digits; float32 is what training uses
QUICK = {
    1: {"float32": ["alone"], "float64": [name for name in ONE if "compiled" not in name]},
    2: {"float64": [name for name, case in (CASES | COMMAND_PLANTED).items() if case.ranks[0] <= 2]},
}
SLOW = {
    1: {"float32": [f"alone, {kind}" for kind in ("accumulation", "experts", "LoRA", "compiled", "bfloat16")]},
    2: {"float32": ["ddp", "averaged", "fsdp2", "tensor parallel"], "float64": TWO},
    4: {
        "float32": ["hsdp"],
        "float64": [*FOUR, "copies counted", *(name for name, case in VARIANTS.items() if case.ranks[0] == 4)],
    },
}


@functools.cache
def outcomes(slow, world):
    """The outcomes by dtype and name, on which all ranks agree."""
    by_rank = run_ranks(run_on_ranks, world, (SLOW if slow else QUICK)[world])
    assert all(theirs == by_rank[0] or _statuses(theirs) == _statuses(by_rank[0]) for theirs in by_rank)
    return by_rank[0]


def _statuses(found):
    return {key: outcome.status for key, outcome in found.items()}


def every():
    for slow, worlds in ((False, QUICK), (True, SLOW)):
        for world, names_by_dtype in worlds.items():
            for dtype, names in names_by_dtype.items():
                for name in names:
                    marks = [pytest.mark.slow] if slow else []
                    yield pytest.param(slow, world, dtype, name, marks=marks, id=f"{world}-{dtype}-{name}")


@pytest.mark.parametrize(("slow", "world", "dtype", "name"), list(every()))
def test_is_exact_or_a_planted_bug_is_seen(slow, world, dtype, name):
    outcome = outcomes(slow, world)[dtype, name]
    assert outcome.status == ("seen" if ALL[name].seen_by else "held"), f"{outcome.note} {outcome.errors}"
    assert set(outcome.errors) == {"gradients", "Grams", "weights", "parameters", "copies"}


def test_every_case_is_tested_somewhere():
    assert {parameter.values[3] for parameter in every()} == set(ALL)


def test_a_planted_bug_is_a_large_error_and_no_rounding():
    found = {name: outcome.errors for (_, name), outcome in outcomes(False, 2).items()}
    assert found["orders differ"]["gradients"] > 0.5
    assert found["last batch only"]["gradients"] > 0.5
    assert found["Grams of shards"]["Grams"] > 0.5
    assert found["unseeded order"]["weights"] > 0.01
    assert found["unseeded order"]["parameters"] > 0.001


@pytest.mark.parametrize("spread", [ddp, fsdp])
def test_ranks_that_tell_different_domains_are_refused(spread):
    assert all(run_ranks(is_refused, 2, spread))
