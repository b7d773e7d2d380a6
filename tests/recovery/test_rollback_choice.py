"""The choice of budget and scale, and what is said of budgets, losses and changes. Pure functions."""

import math
import random

import pytest
import torch

from counterpoint.errors import CounterpointError
from counterpoint.recovery.rolling_back.comparison import restored
from counterpoint.recovery.rolling_back.masks import Neurons
from counterpoint.recovery.rolling_back.options import BUDGETS, RollbackOptions
from counterpoint.recovery.rolling_back.region import Region
from counterpoint.recovery.rolling_back.results import Chosen, Trial
from counterpoint.recovery.rolling_back.scores import WeightScores
from counterpoint.recovery.rolling_back.selection import better_random, budget_masks, choose, chooser_of, largest
from recovery_helpers import saved_edit


def quiet(*_):
    pass


def trial(kind, objective, num_weights=0, scale=1.0, budget=0.1):
    return Trial(kind, None, budget, scale, num_weights, {"math": objective}, objective)


def test_the_best_is_chosen_and_the_smaller_of_equal_ones():
    tried = [
        trial("after", 0.5),
        trial("rollback", 0.7, 30, budget=0.3),
        trial("rollback", 0.7, 10, budget=0.1, scale=1.0),
        trial("rollback", 0.7, 10, budget=0.1, scale=0.5),
        trial("rollback", 0.6, 1, budget=0.01),
        trial("random", 0.9, 1),
    ]
    assert choose(tried) == Chosen(0.1, 0.5, 10)


def test_random_weights_that_do_better_elsewhere_are_told():
    tried = [
        trial("after", 0.5),
        trial("rollback", 0.7, 10, budget=0.01),
        trial("random", 0.6, 10, budget=0.01),
        trial("random", 0.9, 30, budget=0.3),
        trial("random", 0.8, 30, budget=0.3),
    ]
    said = better_random(tried, choose(tried))
    assert "random weights at a budget of 0.3 and a scale of 1 reach 0.850, more than the chosen mask's 0.700" in said
    assert better_random(tried[:3], choose(tried)) is None


def test_nothing_is_chosen_where_nothing_beats_leaving_the_weights_alone():
    assert choose([trial("after", 0.5), trial("rollback", 0.5, 10), trial("random", 0.9, 10)]) is None


def test_defaults_beyond_the_edit_are_left_out_with_a_note(tmp_path):
    edit, *_ = saved_edit(tmp_path, share=0.05)
    chooser = chooser_of(WeightScores("magnitude", edit, Region()), "coordinates", edit.names, quiet)
    masks, notes = budget_masks(chooser, edit, RollbackOptions(), quiet)
    assert list(masks) == [b for b in BUDGETS if round(b * edit.num_weights) <= chooser.num_candidates] != list(BUDGETS)
    assert len(notes) == len(BUDGETS) - len(masks)
    assert all("larger than the edit" in note for note in notes)


def test_the_largest_budget_that_an_error_names_is_accepted(tmp_path):
    edit, *_ = saved_edit(tmp_path, share=0.5)
    chooser = chooser_of(WeightScores("magnitude", edit, Region()), "coordinates", edit.names, quiet)
    with pytest.raises(CounterpointError, match="The largest budget is") as error:
        budget_masks(chooser, edit, RollbackOptions(budgets=(0.9,)), quiet)
    named = float(str(error.value).rsplit(" ", 1)[1].rstrip("."))
    masks, _ = budget_masks(chooser, edit, RollbackOptions(budgets=(named,)), quiet)
    assert masks[named].num_weights >= 0.99 * chooser.num_candidates


@pytest.mark.parametrize("most", [1, 7, 123, 99_999, 10**9])
def test_largest_never_rounds_up(most):
    total = 10**9 + 7
    assert 0 < largest(most, total) <= most / total
    assert largest(most, total) == pytest.approx(most / total, rel=1e-3)


def test_budgets_below_one_neuron_are_an_empty_mask(tmp_path):
    edit, *_ = saved_edit(tmp_path)
    chooser = Neurons({0: torch.tensor([1.0, 2.0])}, {0: 36})
    with pytest.raises(CounterpointError, match="less than the best neuron has, so the mask would be empty"):
        budget_masks(chooser, edit, RollbackOptions(unit="neurons", budgets=(10 / edit.num_weights,)), quiet)
    with pytest.raises(CounterpointError, match="None of the default budgets fits: 36 of"):
        budget_masks(Neurons({0: torch.tensor([1.0, 0.0])}, {0: 36}), edit, RollbackOptions(unit="neurons"), quiet)


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
