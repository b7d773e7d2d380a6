"""Whether two runs are the same: samples exactly, numbers up to what the last bits of a forward pass may do."""

import json
import math

from safetensors.torch import load_file

CLOCKS = {"time", "step_time", "step_seconds", "seconds"}

REWARDS_THAT_TEACH = {
    "math": {"source": "pocket", "reward": {"name": "length", "options": {"minimum": 10, "unit": "characters"}}},
    "code": {"source": "pocket", "reward": {"name": "length", "options": {"maximum": 3, "unit": "characters"}}},
}
"""Domains whose rewards differ among six random characters, and oppose each other: solving tasks never does."""

TOLERANCE = 1e-3
"""Of a number, and of the distance the weights went. Losing the optimizer's state or a step shows far above it."""


def lines(folder, name):
    """The rows of a run's file without what a clock says."""
    rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def assert_close(found, expected, where):
    """Floats within the tolerance, everything else equal."""
    if isinstance(expected, float):
        assert isinstance(found, float | int), where
        assert math.isclose(found, expected, rel_tol=TOLERANCE, abs_tol=1e-5), f"{where}: {found} != {expected}"
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_close(found[key], value, f"{where}: {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_close(a, b, f"{where}, {i + 1}")
    else:
        assert found == expected, where


def distance(one, other):
    """The Euclidean distance of two models' weights."""
    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert one.keys() >= other.keys()  # FSDP2 writes a tied head once more
    return math.sqrt(sum((one[name].double() - other[name].double()).square().sum().item() for name in other))


def assert_same_run(ours, theirs, start, last):
    """Same lines and, after step ``last``, same weights, which training has moved away from ``start``'s."""
    for name in ("metrics.jsonl", "evals.jsonl", "samples.jsonl", "grams.jsonl"):
        assert_close(lines(ours, name), lines(theirs, name), name)
    mine, reference = (run / f"checkpoints/step-{last}" for run in (ours, theirs))
    moved = distance(reference, start)
    assert moved > 0.1, "nothing was learned that could differ"
    assert distance(mine, reference) < TOLERANCE * moved
