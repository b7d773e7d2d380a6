"""What few seeds can say: known values, coverage, false alarms and power by simulation, and what is no interval."""

import itertools
import math
import random
import statistics

import pytest

from counterpoint.stats import Estimate, mean_of_independent, student_p_value, student_quantile
from counterpoint.study.statistics import (
    change_over_seeds,
    decide,
    holm,
    mcnemar_p,
    over_seeds,
    power,
    score_over_seeds,
    seeds_for,
    standard_deviation,
)

SPREAD = 0.0185  # the median standard deviation over seeds in docs/study-pocket.md


def draws(seed, count, size, mean=0.0):
    rng = random.Random(seed)
    return [[rng.gauss(mean, 1.0) for _ in range(size)] for _ in range(count)]


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [(2.776445, 4, 0.05), (12.7062, 1, 0.05), (4.604095, 4, 0.01), (0.0, 7, 1.0), (1.96, 10**6, 0.05)],
)
def test_students_p_values_are_those_of_the_tables(t, degrees, p):
    assert student_p_value(t, min(degrees, 2000)) == pytest.approx(p, abs=2e-4)
    assert student_p_value(-t, min(degrees, 2000)) == student_p_value(t, min(degrees, 2000))


def test_p_values_and_quantiles_are_inverse():
    for degrees in (1, 2, 3, 4, 9, 30):
        for probability in (0.9, 0.975, 0.995):
            assert student_p_value(student_quantile(probability, degrees), degrees) == pytest.approx(
                2 * (1 - probability)
            )


def test_an_interval_over_seeds_is_the_textbooks():
    found = over_seeds([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3 / 4)
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), abs=1e-5)
    assert standard_deviation([1.0, 2.0, 4.0]) == pytest.approx(statistics.stdev([1.0, 2.0, 4.0]))


@pytest.mark.parametrize("values", [[0.3], [0.8125, 0.8125], [0.5] * 5, [1.0, 1.0, 1.0]])
def test_seeds_that_say_nothing_of_their_spread_give_no_interval(values):
    found = score_over_seeds(values)
    assert found.value == values[0]
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_no_interval_leaves_the_bounds_of_the_score():
    assert score_over_seeds([0.6875, 0.8125]) == Estimate(0.75, 0.0, 1.0)  # by t alone [-0.044, 1.544]
    assert change_over_seeds([0.0, 0.2], [0.9, 0.8]).high == 1.0
    free = score_over_seeds([3.0, 5.0])  # a reward model's scores have no bounds
    assert free.low < 0 < 1 < free.high


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_intervals_cover_the_truth_as_often_as_they_claim(size):
    found = [over_seeds(values) for values in draws(size, 4000, size, mean=0.4)]
    covered = sum(one.low <= 0.4 <= one.high for one in found) / len(found)
    assert abs(covered - 0.95) < 0.012


def test_differences_are_paired_by_seed():
    rng = random.Random(5)
    reference = [rng.gauss(0.5, 0.3) for _ in range(5)]  # seeds differ far more than rows do
    better = [value + 0.05 + rng.gauss(0, 0.005) for value in reference]
    found = decide({"row": (reference, better)}, 1)["row"]
    assert found.p < 0.001
    assert found.change.low < 0.05 < found.change.high
    assert found.verdict == "better"
    assert decide({"row": ([*reference[1:], reference[0]], better)}, 1)["row"].verdict == "not decided"


def test_no_spread_decides_nothing():
    same = decide({"row": ([0.4, 0.5], [0.4, 0.5])}, 1)["row"]
    assert (same.change.value, same.p, same.verdict) == (0.0, 1.0, "not decided")
    constant = decide({"row": ([0.25, 0.375, 0.5], [0.5, 0.625, 0.75])}, 1)["row"]
    assert math.isnan(constant.p)
    assert math.isnan(constant.change.low)
    assert constant.verdict == "not decided"


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 4) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.01}, 3) == {"a": 0.03}  # two planned ones have no values yet
    assert holm({}, 0) == {}
    assert holm({"a": 0.9, "b": 0.8}, 2) == {"a": 1.0, "b": 1.0}


def decisions(seed, num_rows, effects, num_seeds=5, spread=SPREAD):
    """One simulated study: every row differs from the reference by its effect; rows share the reference's noise."""
    rng = random.Random(seed)
    noise = spread / math.sqrt(2)
    reference = [rng.gauss(0.7, noise) for _ in range(num_seeds)]
    pairs = {
        row: (reference, [rng.gauss(0.7 + effects.get(row, 0.0), noise) for _ in range(num_seeds)])
        for row in range(num_rows)
    }
    return {row: found.verdict for row, found in decide(pairs, num_rows).items()}


@pytest.mark.parametrize("num_rows", [1, 3, 10])
def test_planned_contrasts_without_a_difference_rarely_claim_one(num_rows):
    wrong = sum(set(decisions(seed, num_rows, {}).values()) != {"not decided"} for seed in range(1500))
    assert wrong / 1500 < 0.062  # three standard errors above 0.05


def test_few_planned_contrasts_see_what_a_correction_for_everything_hides():
    few = sum(decisions(seed, 3, {1: 0.04})[1] == "better" for seed in range(400)) / 400
    everything = sum(decisions(seed, 75, {1: 0.04})[1] == "better" for seed in range(400)) / 400
    assert few >= 0.7
    assert everything < 0.2


def test_a_difference_is_named_by_its_sign():
    seen = [decisions(seed, 3, {0: 0.1, 2: -0.1}) for seed in range(100)]
    assert sum(found[0] == "better" for found in seen) > 95
    assert sum(found[2] == "worse" for found in seen) > 95
    assert not any(found[0] == "worse" or found[2] == "better" for found in seen)


@pytest.mark.parametrize(("effect", "spread", "size"), [(0.02, SPREAD, 5), (0.04, SPREAD, 5), (0.02, SPREAD, 12)])
def test_power_is_the_share_of_studies_that_see_it(effect, spread, size):
    rng = random.Random(size)
    flat = [0.5] * size
    tries = [decide({0: (flat, [0.5 + rng.gauss(effect, spread) for _ in flat])}, 1)[0] for _ in range(2000)]
    assert sum(found.verdict == "better" for found in tries) / 2000 == pytest.approx(
        power(effect, spread, size), abs=0.035
    )


def test_the_powers_of_the_documentation():
    assert [round(power(0.04, SPREAD, 5, 0.05 / m), 2) for m in (1, 3, 15, 75)] == [0.94, 0.75, 0.35, 0.11]
    assert power(0.02, SPREAD, 1) == 0
    assert power(5.0, 1e-9, 5) == 1
    assert power(0.0, SPREAD, 5) == pytest.approx(0.05)


def test_seeds_are_the_fewest_that_are_enough():
    for level in (0.05, 0.05 / 3):
        needed = seeds_for(0.02, SPREAD, level)
        assert power(0.02, SPREAD, needed, level) >= 0.8 > power(0.02, SPREAD, needed - 1, level)
    assert seeds_for(1.0, 1e-6) == 2
    assert seeds_for(0.02, 1.0) is None


def test_the_mean_of_independent_means_is_as_uncertain_as_they_are():
    found = mean_of_independent([Estimate(0.5, 0.4, 0.6), Estimate(0.9, 0.8, 0.95)])
    assert found.value == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - math.hypot(0.1, 0.1) / 2)
    assert found.high == pytest.approx(0.7 + math.hypot(0.1, 0.05) / 2)
    one = mean_of_independent([Estimate(0.5, 0.4, 0.6)])
    assert (one.low, one.high) == pytest.approx((0.4, 0.6))


@pytest.mark.parametrize("pairs", [(0, 5, 2), (3, 3, 4), (1, 8, 0), (0, 0, 6)])
def test_mcnemars_p_is_the_share_of_coin_tosses_at_least_as_uneven(pairs):
    more, less, same = pairs
    before = [0.0] * more + [1.0] * less + [1.0] * same
    after = [1.0] * more + [0.0] * less + [1.0] * same
    uneven = [
        abs(sum(tosses) - (more + less - sum(tosses))) for tosses in itertools.product((0, 1), repeat=more + less)
    ]
    expected = statistics.fmean(difference >= abs(more - less) for difference in uneven)
    assert mcnemar_p(before, after) == pytest.approx(expected)


def test_fewer_starved_seeds_are_better():
    pair = ([1.0] * 8 + [0.0] * 2, [0.0] * 10)
    found = decide({"fewer": pair, "more": pair[::-1]}, 2, ["fewer", "more"])
    assert [found[key].verdict for key in ("fewer", "more")] == ["better", "worse"]
    assert found["fewer"].p == pytest.approx(2 / 2**8)
