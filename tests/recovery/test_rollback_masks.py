"""Scores and masks against brute force, and random masks: matched in tensor and size, or uniform."""

import pytest
import torch

from counterpoint.diagnosis._edit_vector import changed_weights
from counterpoint.recovery.masks import (
    MatchedMask,
    RandomScores,
    WeightScores,
    moved_share,
    uniform_masks,
)
from counterpoint.topk import Ranking
from recovery_helpers import held, saved_edit, top_mask


@pytest.fixture
def place(tmp_path):
    return saved_edit(tmp_path, share=0.6)


@pytest.mark.parametrize("rule", ["damage", "magnitude"])
def test_a_mask_is_the_top_of_the_formula(place, rule):
    edit, before, after = place
    generator = torch.Generator().manual_seed(5)
    fisher = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in before.items()}
    expected = {}
    for name in edit.names:
        d = (after[name] - before[name]).double()
        expected[name] = fisher[name].double() * d**2 if rule == "damage" else d.abs()
    scores = WeightScores(edit, fisher if rule == "damage" else None)
    joined = torch.cat([value.flatten() for value in expected.values()])
    assert Ranking.of(list(changed_weights(edit)), scores).num_candidates == int((joined > 0).sum())
    for count in (5, 60):
        chosen = torch.cat([part.flatten() for part in held(top_mask(edit, count, scores.fisher), edit).values()])
        assert int(chosen.sum()) == count
        assert joined[chosen].min() >= joined[~chosen].max() * (1 - 1e-6)


def deciles_of(size):
    """For every weight, which tenth of the changed ones of its tensor it is in; by sorting."""
    changed = size[size > 0].sort().values
    edges = changed[[max(0, round(len(changed) * i / 10) - 1) for i in range(1, 10)]]
    return torch.bucketize(size, edges)


def test_matched_masks_have_as_many_weights_of_every_tensor_and_size(place):
    edit, before, after = place
    mask = top_mask(edit, 150)
    ranked = held(mask, edit)
    first, again, other = (held(MatchedMask(mask, edit, 0, draw), edit) for draw in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in edit.names)
    assert not all(torch.equal(first[name], other[name]) for name in edit.names)
    assert any(not torch.equal(first[name], ranked[name]) for name in edit.names)
    for name in edit.names:
        size = (after[name] - before[name]).abs()
        tenth = deciles_of(size)
        assert not (first[name] & (size == 0)).any()
        for place_in_order in range(10):
            inside = tenth == place_in_order
            off = int((ranked[name] & inside).sum()) - int((first[name] & inside).sum())
            assert abs(off) <= 1, "rounding of an edge alone"
        assert int(first[name].sum()) == int(ranked[name].sum())


def test_matched_masks_move_about_as_much_of_the_edit_and_uniform_ones_less(place):
    edit, *_ = place
    names = changed_weights(edit)
    mask = top_mask(edit, 150)
    own = moved_share(edit, names, mask, 1.0)
    matched = moved_share(edit, names, MatchedMask(mask, edit, 0, 0), 1.0)
    (uniform,) = (moved_share(edit, names, one, 1.0) for one in uniform_masks(edit, names, 150, 0, 1))
    assert matched == pytest.approx(own, rel=0.2)
    assert uniform < own / 2
    assert moved_share(edit, names, mask, 0.5) == pytest.approx(own / 4)


def test_uniform_masks_are_changed_weights_and_differ_by_draw(place):
    edit, before, after = place
    names = list(changed_weights(edit))
    first, other = (held(mask, edit) for mask in uniform_masks(edit, names, 50, 0, 2))
    (again,) = (held(mask, edit) for mask in uniform_masks(edit, names, 50, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in edit.names)
    assert not all(torch.equal(first[name], other[name]) for name in edit.names)
    assert not any((first[name] & (before[name] == after[name])).any() for name in edit.names)
    assert sum(int(part.sum()) for part in first.values()) == 50


def test_uniform_masks_prefer_no_tensor(place):
    """Over many draws every changed weight comes as often as any other."""
    edit, before, after = place
    names, total = list(changed_weights(edit)), dict.fromkeys(edit.names, 0)
    draws, count = 20, 400
    for mask in uniform_masks(edit, names, count, 3, draws):
        for name, part in held(mask, edit).items():
            total[name] += int(part.sum())
    changed = {name: int((before[name] != after[name]).sum()) for name in edit.names}
    everything = sum(changed.values())
    for name in edit.names:
        expected = draws * count * changed[name] / everything
        assert abs(total[name] - expected) < 5 * expected**0.5, name


def test_random_scores_do_not_touch_the_global_stream(place):
    edit, *_ = place
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RandomScores(edit, 0, 0)("model.norm.weight")
    assert torch.equal(torch.rand(3), expected)
