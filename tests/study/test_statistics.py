"""What few seeds can say: known values, brute force, coverage and false alarms by simulation, and what power costs."""

import itertools
import math
import random

import pytest

from counterpoint.stats import student_p_value, student_quantile
from counterpoint.study.statistics import (
    Spread,
    holm,
    mean_of_independent,
    paired_difference,
    sign_flip_p,
    smallest_sign_flip_p,
    spread,
    verdict,
)


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


def test_a_spread_is_the_textbooks():
    found = spread([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3 / 4)
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), abs=1e-5)
    assert math.isnan(spread([0.3]).low)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_intervals_cover_the_truth_as_often_as_they_claim(size):
    found = [spread(values) for values in draws(size, 4000, size, mean=0.4)]
    covered = sum(one.low <= 0.4 <= one.high for one in found) / len(found)
    assert abs(covered - 0.95) < 0.012


def flips_by_hand(changes):
    sums = [
        sum(s * c for s, c in zip(signs, changes, strict=True))
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    return sum(abs(total) >= abs(sum(changes)) - 1e-12 for total in sums) / len(sums)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_sign_flip_test_counts_every_flip(size):
    for changes in draws(11 + size, 20, size):
        assert sign_flip_p(changes) == pytest.approx(flips_by_hand(changes))
        assert sign_flip_p(changes) >= smallest_sign_flip_p(size)
    assert sign_flip_p([0.1] * size) == smallest_sign_flip_p(size) == 2 / 2**size
    assert sign_flip_p([0.0] * size) == 1.0


def test_beyond_sixteen_seeds_signs_are_sampled():
    exact, sampled = draws(3, 1, 16, mean=0.4)[0], draws(3, 1, 16, mean=0.4)[0]
    assert sign_flip_p([*sampled, 0.0]) == pytest.approx(sign_flip_p(exact), abs=0.01)
    assert sign_flip_p([0.1] * 20) == smallest_sign_flip_p(20) < 1e-4


def test_differences_are_paired_by_seed():
    rng = random.Random(5)
    reference = [rng.gauss(0.5, 0.3) for _ in range(5)]  # seeds differ far more than rows do
    better = [value + 0.05 + rng.gauss(0, 0.005) for value in reference]
    found = paired_difference(better, reference)
    assert found.p < 0.001
    assert found.low < 0.05 < found.high
    assert found.p_sign_flip == 0.0625
    shuffled = paired_difference(better, [*reference[1:], reference[0]])
    assert shuffled.p > 0.1


def test_one_seed_compares_nothing_and_no_spread_judges_nothing():
    assert paired_difference([0.4], [0.3]) is None
    same = paired_difference([0.4, 0.5], [0.4, 0.5])
    assert (same.mean, same.p) == (0.0, 1.0)
    constant = paired_difference([0.5, 0.625, 0.75], [0.25, 0.375, 0.5])
    assert constant.p == constant.p_sign_flip == 0.25
    assert math.isnan(constant.low)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({}) == {}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def verdicts(seed, num_rows, effects, num_seeds=5, noise=0.02):
    """One simulated study: every row differs from the reference by its effect; rows share the reference's noise."""
    rng = random.Random(seed)
    reference = [rng.gauss(0.7, noise) for _ in range(num_seeds)]
    found = {}
    for row in range(num_rows):
        ours = [rng.gauss(0.7 + effects.get(row, 0.0), noise) for _ in range(num_seeds)]
        found[row] = paired_difference(ours, reference)
    corrected = holm({row: one.p for row, one in found.items()})
    return {row: verdict(one.mean, corrected[row]) for row, one in found.items()}, found


def test_studies_without_a_difference_rarely_claim_one():
    count = 600
    wrong = uncorrected = 0
    for seed in range(count):
        told, found = verdicts(seed, 12, {})
        wrong += any(word != "within noise" for word in told.values())
        uncorrected += any(one.p < 0.05 for one in found.values())
    assert wrong / count < 0.06
    assert uncorrected / count > 0.2  # what the correction is for


def test_a_large_difference_is_seen_and_named_by_its_sign():
    seen = [verdicts(seed, 12, {3: 0.15, 7: -0.15})[0] for seed in range(100)]
    assert sum(told[3] == "better" for told in seen) > 70
    assert sum(told[7] == "worse" for told in seen) > 70
    assert not any(told[3] == "worse" or told[7] == "better" for told in seen)


def test_the_mean_of_independent_means_is_as_uncertain_as_they_are():
    found = mean_of_independent([Spread(0.5, 0.4, 0.6), Spread(0.9, 0.8, 0.95)])
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - math.hypot(0.1, 0.1) / 2)
    assert found.high == pytest.approx(0.7 + math.hypot(0.1, 0.05) / 2)
    one = mean_of_independent([Spread(0.5, 0.4, 0.6)])
    assert (one.low, one.high) == pytest.approx((0.4, 0.6))
