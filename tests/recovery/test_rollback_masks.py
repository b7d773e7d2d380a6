"""Scores and masks against brute force: coordinates and neurons, everywhere and on a route, and random ones."""

import re

import pytest
import torch

from counterpoint.anatomy import NeuronAxis
from counterpoint.recovery.rolling_back.edit import changed_weights
from counterpoint.recovery.rolling_back.masks import coordinates, neurons, random_coordinates, random_neurons
from counterpoint.recovery.rolling_back.region import Region
from counterpoint.recovery.rolling_back.scores import RandomScores, WeightScores
from recovery_helpers import saved_edit

SHARED = {0: torch.arange(20) % 3 == 0, 1: torch.arange(20) < 5}


def nothing(done, total):
    pass


def masks_of(chooser, counts):
    return chooser.masks(counts, nothing)


def held(mask, edit):
    """The mask of every tensor in full."""
    found = {}
    for name in edit.names:
        part = mask.of(name)
        shape = edit.shape(name)
        found[name] = torch.zeros(shape, dtype=torch.bool) if part is None else part.expand(shape)
    return found


def axis_of(name):
    """Where neurons lie in the tensors of the helpers' models."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj\.weight", name)
    return found and NeuronAxis(int(found[1]), int(found[2] == "down"), 1, found[2])


def on_route(name, shape, shared):
    """Bool in the shape of the tensor: weights of shared neurons."""
    axis = axis_of(name)
    inside = torch.zeros(shape, dtype=torch.bool)
    if axis is not None:
        for neuron in shared[axis.layer].nonzero().flatten().tolist():
            inside.select(axis.dim, neuron).fill_(True)
    return inside


@pytest.fixture
def place(tmp_path):
    return saved_edit(tmp_path, share=0.6)


@pytest.mark.parametrize("shared", [None, SHARED], ids=["everywhere", "route"])
@pytest.mark.parametrize("rule", ["damage", "magnitude"])
def test_coordinates_are_the_top_of_the_formula(place, rule, shared):
    edit, before, after = place
    generator = torch.Generator().manual_seed(5)
    fisher = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in before.items()}
    scores = WeightScores(rule, edit, Region(shared=shared), fisher)
    expected = {}
    for name in edit.names:
        d = (after[name] - before[name]).double()
        value = fisher[name].double() * d**2 if rule == "damage" else d.abs()
        if shared is not None:
            value = value * on_route(name, d.shape, shared)
        expected[name] = value
    names = [name for name in changed_weights(edit) if scores.region.holds(edit.neurons(name))]
    chooser = coordinates(names, scores, nothing)
    joined = torch.cat([value.flatten() for value in expected.values()])
    assert chooser.num_candidates == int((joined > 0).sum())
    for count, mask in zip([5, 60], masks_of(chooser, [5, 60]), strict=True):
        chosen = torch.cat([part.flatten() for part in held(mask, edit).values()])
        assert int(chosen.sum()) == count == mask.num_weights
        assert joined[chosen].min() >= joined[~chosen].max() * (1 - 1e-6)


@pytest.mark.parametrize("shared", [None, SHARED], ids=["everywhere", "route"])
def test_a_neurons_score_is_the_sum_over_its_rows_and_column(place, shared):
    edit, before, after = place
    fisher = {name: torch.full_like(tensor, 2.0) for name, tensor in before.items()}
    scores = WeightScores("damage", edit, Region(True, shared), fisher)
    found = neurons(scores, nothing)
    for layer in (0, 1):
        at = f"model.layers.{layer}.mlp"
        squares = {part: 2 * (after[f"{at}.{part}_proj.weight"] - before[f"{at}.{part}_proj.weight"]).double() ** 2
                   for part in ("gate", "up", "down")}  # fmt: skip
        expected = squares["gate"].sum(1) + squares["up"].sum(1) + squares["down"].sum(0)
        if shared is not None:
            expected *= shared[layer]
        assert torch.allclose(found.scores[layer], expected, rtol=1e-5)
    assert found.sizes == {0: 36, 1: 36}


def test_neurons_fill_a_budget_of_weights_and_never_exceed_it(place):
    edit, *_ = place
    chooser = neurons(WeightScores("magnitude", edit, Region(True)), nothing)
    for count, mask in zip([35, 36, 100, 10_000], masks_of(chooser, [35, 36, 100, 10_000]), strict=True):
        chosen = held(mask, edit)
        assert sum(int(part.sum()) for part in chosen.values()) == mask.num_weights <= count
        assert mask.num_weights == min(count // 36, 40) * 36
        assert not any(part.any() for name, part in chosen.items() if axis_of(name) is None)


def test_random_coordinates_are_changed_ones_of_the_region_and_differ_by_draw(place):
    edit, before, after = place
    names = list(changed_weights(edit))
    masks = [masks_of(random_coordinates(edit, Region(True, SHARED), names, 0, draw), [50])[0] for draw in (0, 0, 1)]
    first, again, other = (held(mask, edit) for mask in masks)
    assert all(torch.equal(first[name], again[name]) for name in edit.names)
    assert not all(torch.equal(first[name], other[name]) for name in edit.names)
    for name in edit.names:
        allowed = (before[name] != after[name]) & on_route(name, before[name].shape, SHARED)
        assert not (first[name] & ~allowed).any()
    assert sum(int(part.sum()) for part in first.values()) == 50


def test_random_coordinates_are_uniform(place):
    """Over many draws every changed weight comes as often as any other: no tensor is preferred."""
    edit, before, after = place
    names, total = list(changed_weights(edit)), dict.fromkeys(edit.names, 0)
    draws, count = 60, 400
    for draw in range(draws):
        (mask,) = masks_of(random_coordinates(edit, Region(), names, 3, draw), [count])
        for name, part in held(mask, edit).items():
            total[name] += int(part.sum())
    changed = {name: int((before[name] != after[name]).sum()) for name in edit.names}
    everything = sum(changed.values())
    for name in edit.names:
        expected = draws * count * changed[name] / everything
        assert abs(total[name] - expected) < 5 * expected**0.5, name


def test_random_neurons_leave_out_what_the_edit_left_alone(tmp_path):
    edit, *_ = saved_edit(tmp_path)
    orders = random_neurons(edit, Region(True, SHARED), 0, 0)
    for layer, shared in SHARED.items():
        assert torch.equal(orders.scores[layer] > 0, shared)


def test_random_scores_do_not_touch_the_global_stream(place):
    edit, *_ = place
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    RandomScores(edit, Region(), 0, 0)("model.norm.weight")
    assert torch.equal(torch.rand(3), expected)
