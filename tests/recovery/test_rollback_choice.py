"""The choice of budget and scale, the share that came back, and what is said of a result. Pure functions."""

import math
import random
from dataclasses import replace

import pytest

from counterpoint.recovery import Rollback, RollbackOptions
from counterpoint.recovery._rollback_result import Judged, Measured, Split, Trial
from counterpoint.recovery.rollback import _counts_of, choose, largest, restored
from counterpoint.stats import Estimate, Standing


def trial(kind, average, scale=1.0, budget=0.1):
    return Trial(kind, budget, scale, {"math": average})


NOTHING = trial("nothing", 0.5, 0.0, 0.0)


def test_the_best_of_a_kind_is_chosen_and_the_smaller_of_equal_ones():
    tried = [
        trial("mask", 0.7, budget=0.3),
        trial("mask", 0.7, budget=0.1, scale=1.0),
        trial("mask", 0.7, budget=0.1, scale=0.5),
        trial("mask", 0.6, budget=0.01),
        trial("pull-back", 0.9, budget=1.0, scale=0.3),
    ]
    assert choose(NOTHING, tried, "mask") is tried[2]
    assert choose(NOTHING, tried, "pull-back") is tried[4]


def test_nothing_is_chosen_where_nothing_beats_leaving_the_weights_alone():
    assert choose(NOTHING, [trial("mask", 0.5), trial("pull-back", 0.4)], "mask") is None


def test_budgets_beyond_the_edit_are_named_with_the_largest_possible_one():
    counts, problems = _counts_of((0.001, 0.01, 0.3), 1000, 123)
    assert counts == {0.001: 1, 0.01: 10}
    assert "0.3 of 1,000 weights is 300, more than the 123 that can be moved back. The largest is 0.123" in problems[0]
    assert "less than one weight" in _counts_of((1e-6,), 1000, 123)[1][0]


@pytest.mark.parametrize("most", [1, 7, 123, 99_999, 10**9])
def test_largest_never_rounds_up(most):
    total = 10**9 + 7
    assert 0 < largest(most, total) <= most / total
    assert largest(most, total) == pytest.approx(most / total, rel=1e-3)


def test_the_restored_part_is_a_ratio_of_means():
    before, after = [1.0, 1.0, 0.5, 1.0] * 10, [0.0, 0.5, 0.5, 0.5] * 10
    assert restored(before, after, [before]).value == 1
    assert restored(before, after, [after]).value == 0
    half = [(a + b) / 2 for a, b in zip(before, after, strict=True)]
    found = restored(before, after, [half])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert restored(before, after, [before, after]).value == pytest.approx(0.5)


def test_the_interval_of_the_restored_part_covers_the_truth():
    """Fieller's interval on prompts drawn at random: at least about 95 of 100 cover, and not all of many."""
    stream, covered, runs = random.Random(0), 0, 600
    for _ in range(runs):
        gone = [stream.gauss(0.3, 0.4) for _ in range(40)]
        back = [0.5 * g + stream.gauss(0.0, 0.2) for g in gone]
        found = restored(gone, [0.0] * 40, [back])
        covered += found.low <= 0.5 <= found.high
    assert 0.92 * runs <= covered <= 0.985 * runs


def test_a_loss_that_is_noise_has_no_interval():
    stream = random.Random(0)
    gone = [stream.gauss(0.0, 1.0) for _ in range(30)]
    found = restored(gone, [0.0] * 30, [[0.1] * 30])
    assert math.isinf(found.high)


def estimate(value, half=0.05):
    return Estimate(value, value - half, value + half)


def row(name, math, change, moved=0.06, qa=0.0, share=0.5):
    scores = {"math": estimate(math), "qa": estimate(0.5)}
    return Measured(name, 3, moved, scores, {"math": estimate(change), "qa": estimate(qa, 0.02)}, estimate(share, 0.1))


def result(**changes):
    mask = Trial("mask", 0.01, 0.5, {"math": 0.7, "qa": 0.5})
    judged = Judged("mask", mask, Standing("back", estimate(0.2), 0.01), {"qa": "spared"}, ())
    fields = {
        "damage": estimate(-0.3),
        "test": Split(9, 4),
        "search": Split(8, 2),
        "tried": (Trial("nothing", 0.0, 0.0, {"math": 0.5, "qa": 0.5}), mask),
        "measured": (
            row("before", 0.8, 0.3, None),
            row("after", 0.5, 0.0, None),
            row("mask", 0.7, 0.2, share=0.54),
            row("matched", 0.68, 0.18, share=0.49),
            row("uniform", 0.51, 0.01, 0.03, share=0.06),
        ),
        "judged": (judged,),
        "ranking_adds": {"math": estimate(0.02)},
        "placing_adds": {"math": estimate(0.17)},
        "written": "mask",
        "checkpoint": "there",
    }
    return Rollback("b", "c", "math", RollbackOptions(), 1000, 900, **fields | changes)


def test_it_says_what_the_ranking_adds_and_what_choosing_tensors_and_sizes_adds():
    text = " ".join(result().sentences())
    assert "math fell from 0.800 [0.750, 0.850] to 0.500 [0.450, 0.550]: -0.300" in text
    assert "Moving 1.00% of the weights back 50% of the way (6.0% of |d|^2): math is back: +0.200" in text
    assert "It restores 54% [44%, 64%] of the loss." in text
    assert (
        "same tensors and sizes (6.0% of |d|^2) restore 49% [39%, 59%]: the ranking of single weights adds +0.020 "
        in text
    )
    assert "+0.020 [-0.030, +0.070], within noise. Uniformly random weights (3.0%) restore 6%" in text
    assert "choosing tensors and sizes adds +0.170 [+0.120, +0.220]." in text
    assert "No other domain fell by more than 0.03 (qa)." in text
    assert "The mask is the best that helps. It is there." in text


def test_what_failed_is_said_and_nothing_is_called_a_success():
    (good,) = result().judged
    bad = replace(good, standing=Standing("not proven", estimate(0.01), 0.29), others={"qa": "unclear"}, against=("x",))
    text = " ".join(result(judged=(bad,), written="none", checkpoint=None).sentences())
    assert "math improved, but not proven: +0.010" in text
    assert "Not known whether harmed: qa +0.000 [-0.020, +0.020]." in text
    assert "No checkpoint was written: the mask x." in text


def test_a_loss_without_a_known_size_has_no_interval():
    rows = tuple(replace(one, restored=Estimate(0.4, -math.inf, math.inf)) for one in result().measured)
    assert "It restores 40% of the loss." in " ".join(result(measured=rows).sentences())


def test_it_prints_as_tables():
    held_out, search = result().tables()
    assert held_out.columns == ("model", "|d|^2 moved", "loss restored", "math", "qa")
    assert [cells[0] for cells in held_out.text()][2:4] == [
        "mask, ranked",
        "random, same tensors and sizes (mean of 3)",
    ]
    assert search.text()[1] == ["mask (chosen)", "1.0%", "50%", "0.700", "0.600"]
    assert "mask, ranked" in str(result())
