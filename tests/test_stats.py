"""Coverage by simulation, the edges where the textbook interval lies, and agreement with it where it is right."""

import math

import numpy as np
import pytest

from counterpoint.errors import CounterpointError
from counterpoint.stats import difference_interval, mean_interval, student_quantile


def textbook_interval(scores):
    half = student_quantile(0.975, len(scores) - 1) * np.std(scores, ddof=1) / math.sqrt(len(scores))
    return np.mean(scores) - half, np.mean(scores) + half


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423), (100, 1.9840), (5000, 1.9604)]
)
def test_student_quantile_equals_the_printed_tables(degrees, expected):
    assert student_quantile(0.975, degrees) == pytest.approx(expected, abs=6e-5)


def test_the_quantile_has_no_step_where_the_series_takes_over():
    assert student_quantile(0.975, 2001) == pytest.approx(student_quantile(0.975, 2000), abs=1e-5)


# (a, b) of the Beta distribution of the prompts' own success rates: alike, even, bimodal, and three near an edge.
RATES = {
    "alike": (50, 50),
    "even": (1, 1),
    "bimodal": (0.3, 0.3),
    "low": (0.2, 3.8),
    "rare": (0.1, 4.9),
    "top": (3.8, 0.2),
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES.keys())
@pytest.mark.parametrize(("num_prompts", "num_samples"), [(8, 4), (32, 1), (64, 4), (64, 8)])
def test_nominal_95_percent_covers_at_least_93_of_100_clustered_samples(num_prompts, num_samples, rates):
    rng = np.random.default_rng(7)
    truth = rates[0] / sum(rates)
    hits = 0
    for _ in range(400):
        scores = rng.binomial(num_samples, rng.beta(*rates, num_prompts)) / num_samples
        interval = mean_interval(scores)
        hits += interval.low <= truth <= interval.high
    # 400 draws at a true 0.95 have a standard error of 0.011: 0.93 is two of them below.
    assert hits / 400 >= 0.93


def test_the_textbook_interval_fails_the_same_simulation():
    """Negative control: near an edge the usual t interval covers far less than it says."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(400):
        low, high = textbook_interval(rng.binomial(4, rng.beta(0.1, 4.9, 8)) / 4)
        hits += low <= 0.02 <= high
    assert hits / 400 < 0.6


def test_treating_samples_as_independent_covers_too_little():
    """Negative control: the prompt is the unit; flattening 8 samples of each prompt claims 8 times the evidence."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        scores = np.repeat(rng.random(32) < 0.5, 8)  # every sample of a prompt agrees
        interval = mean_interval(scores)
        hits += interval.low <= 0.5 <= interval.high
    assert hits / 300 < 0.7


def test_graded_scores_are_covered_and_not_much_wider_than_the_textbook():
    rng = np.random.default_rng(3)
    hits, widths = 0, []
    for _ in range(400):
        scores = rng.beta(4, 2, 64)
        interval, (low, high) = mean_interval(scores), textbook_interval(scores)
        hits += interval.low <= 2 / 3 <= interval.high
        widths.append((interval.high - interval.low) / (high - low))
    assert hits / 400 >= 0.93
    assert np.mean(widths) < 1.35


def test_with_many_prompts_it_becomes_the_textbook_interval():
    scores = np.random.default_rng(0).beta(1, 1, 5000)
    interval = mean_interval(scores)
    assert (interval.low, interval.high) == pytest.approx(textbook_interval(scores), abs=1e-4)
    assert interval.value == pytest.approx(scores.mean(), abs=1e-12)


@pytest.mark.parametrize("num_prompts", [2, 8, 64, 1000])
def test_all_wrong_and_all_right_keep_a_width_and_mirror_each_other(num_prompts):
    wrong, right = mean_interval([0.0] * num_prompts), mean_interval([1.0] * num_prompts)
    assert (wrong.low, right.high) == (0.0, 1.0)
    assert wrong.high == pytest.approx(1 - right.low, abs=1e-12)
    # The rule of three says 3/n; Student's t asks for a little more of a small sample.
    assert 3 / (num_prompts + 4) < wrong.high < 1


def test_one_odd_success_does_not_narrow_the_interval_of_all_wrong():
    assert mean_interval([1 / 8] + [0.0] * 63).high > 0.95 * mean_interval([0.0] * 64).high


def test_equal_scores_inside_the_range_keep_a_width():
    interval = mean_interval([0.5] * 64)
    assert 0.02 < interval.high - interval.low < 0.1


@pytest.mark.parametrize("seed", range(20))
def test_it_stays_inside_the_range_contains_its_mean_and_ignores_order(seed):
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.2, 0.2, int(rng.integers(1, 40)))
    interval = mean_interval(scores)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert mean_interval(sorted(scores)) == interval


def test_more_confidence_is_wider():
    scores = [0.0, 0.5, 1.0, 0.25]
    narrow, wide = mean_interval(scores, 0.8), mean_interval(scores, 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_one_prompt_says_nothing_about_the_spread():
    interval = mean_interval([0.7])
    assert (interval.value, interval.low, interval.high) == (0.7, 0.0, 1.0)


def test_unbounded_scores_get_the_plain_t_interval():
    scores = [-3.0, 1.5, 2.0, 7.0]
    interval = mean_interval(scores)
    assert (interval.low, interval.high) == pytest.approx(textbook_interval(scores))
    assert mean_interval([5.0]).low == -math.inf


def test_paired_differences_are_covered_and_narrower_than_unpaired():
    rng = np.random.default_rng(11)
    hits, widths = 0, []
    for _ in range(300):
        easy = rng.beta(0.5, 0.5, 48)
        before = rng.binomial(4, easy * 0.8) / 4
        after = rng.binomial(4, easy * 0.8 + 0.1) / 4
        change = difference_interval(before, after)
        hits += change.low <= 0.1 <= change.high
        a, b = mean_interval(before), mean_interval(after)
        widths.append((change.high - change.low) / (a.high - a.low + b.high - b.low))
    assert hits / 300 >= 0.93
    assert np.mean(widths) < 0.75


def changes_of(rng, prompts, rates, fall, kept=0.0, flips=0.0):
    """Two evaluations of the same prompts, 4 samples each, of which a share ``kept`` is the same draw in both."""
    before = rates(rng, prompts)
    after = np.where(rng.random(prompts) < flips, 1 - np.round(before), np.clip(before - fall, 0, 1))
    stream = rng.random((prompts, 4))
    other = np.where(rng.random(stream.shape) < kept, stream, rng.random(stream.shape))
    return (stream < before[:, None]).mean(1), (other < after[:, None]).mean(1)


def beta(a, b):
    return lambda rng, n: rng.beta(a, b, n)


def constant(rate):
    return lambda rng, n: np.full(n, rate)


@pytest.mark.parametrize(
    ("rates", "fall", "flips"),
    [
        *[
            (constant(0.5), 0.0, 0.0),
            (constant(0.9), 0.05, 0.0),
            (beta(1.6, 0.4), 0.08, 0.0),
            (beta(0.3, 0.3), 0.0, 0.0),
        ],
        *[
            (constant(0.0), 0.0, 0.03),
            (constant(1.0), 0.0, 0.03),
            (constant(1.0), 0.05, 0.0),
            (beta(4.9, 0.1), 0.0, 0.03),
        ],
    ],
)
def test_the_interval_of_a_change_covers_it(rates, fall, flips):
    rng = np.random.default_rng(0)
    before = rates(rng, 200_000)
    true = np.where(before.round() == 1, -before, 1 - before).mean() * flips + (
        (np.clip(before - fall, 0, 1) - before).mean() * (1 - flips)
    )
    hits = 0
    for _ in range(400):
        found = difference_interval(*map(list, changes_of(rng, 64, rates, fall, flips=flips)))
        hits += found.low <= true <= found.high
    assert hits / 400 >= 0.925, "at least 0.94, less two standard errors of 400 draws"


@pytest.mark.parametrize("prompts", [64, 128])
@pytest.mark.parametrize("rates", [constant(0.5), constant(0.9), beta(1.6, 0.4), beta(0.3, 0.3)])
def test_the_interval_of_a_change_is_hardly_wider_than_one_that_knows_the_spread(prompts, rates):
    rng = np.random.default_rng(1)
    found = [difference_interval(*map(list, changes_of(rng, prompts, rates, 0.05))) for _ in range(400)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.high - one.low for one in found]) <= 1.15 * 2 * 1.96 * spread


def test_a_fall_of_every_prompt_by_the_same_little_is_seen_and_no_change_keeps_a_width():
    assert difference_interval([0.8] * 64, [0.75] * 64).high < -0.04
    still = difference_interval([1.0] * 64, [1.0] * 64)
    assert still.value == 0
    assert 1 / 64 < still.high < 3.5 / 64, "about the rule of three: 3 of 64 prompts may flip unseen"


def test_a_fall_of_five_points_at_point_nine_is_found_about_as_often_as_by_a_paired_t():
    """It was found in 13 % of draws, by a paired t in 30 % (independent samples) as here."""
    rng = np.random.default_rng(2)
    ours = textbook = 0
    for _ in range(400):
        before, after = changes_of(rng, 64, constant(0.9), 0.05)
        ours += difference_interval(list(before), list(after)).high < 0
        textbook += textbook_interval(after - before)[1] < 0
    assert ours >= 0.85 * textbook > 0


def test_a_change_turns_its_sign_with_its_direction():
    before, after = [0.0, 0.5, 0.25, 0.0], [1.0, 0.5, 0.75, 0.25]
    up, down = difference_interval(before, after), difference_interval(after, before)
    assert up.value == 0.4375
    assert (up.low, up.high) == pytest.approx((-down.high, -down.low))


def test_no_change_anywhere_still_has_a_width():
    change = difference_interval([0.5] * 64, [0.5] * 64)
    assert change.value == 0
    assert change.low < 0 < change.high


def test_differences_of_unbounded_scores_are_plain_t():
    change = difference_interval([0.0, 2.0, 5.0], [1.0, 4.0, 5.5])
    assert (change.low, change.high) == pytest.approx(textbook_interval([1.0, 2.0, 0.5]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "per_prompt_means is empty"),
        (lambda: mean_interval([0.5, math.nan]), r"per_prompt_means\[1\] must be a finite number; found nan"),
        (lambda: mean_interval([0.5], 95), "confidence must lie between 0 and 1"),
        (lambda: difference_interval([0.5], [0.5, 1.0]), "found 1 and 2 prompts"),
    ],
)
def test_errors_say_what_was_found(call, message):
    with pytest.raises(CounterpointError, match=message):
        call()


def test_prompts_without_a_score_are_left_out():
    assert mean_interval([0.5, None, 1.0]) == mean_interval([0.5, 1.0])
    before, after = [0.0, None, 1.0, 0.25], [1.0, 0.5, None, 0.5]
    assert difference_interval(before, after) == difference_interval([0.0, 0.25], [1.0, 0.5])
