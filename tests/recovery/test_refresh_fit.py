"""The rate of contraction: exact on exact decay, honest about noise."""

import math
import random

import pytest
import torch

from counterpoint.recovery.refreshing.contraction import fit_rate, verdict_of
from counterpoint.recovery.refreshing.distances import Distances, squares
from counterpoint.recovery.refreshing.outcome import contraction_of, notes_of
from counterpoint.runs import RunDirectory
from diagnosis_models import random_model, save
from recovery_helpers import edited


def test_exact_decay_gives_its_rate():
    steps = [0, 5, 10, 15]
    fit = fit_rate(steps, [3.0 * 0.98**step for step in steps])
    assert fit.rate == pytest.approx(0.02)
    assert (fit.low, fit.high) == (pytest.approx(0.02), pytest.approx(0.02))
    assert fit.r_squared == pytest.approx(1)
    assert verdict_of(fit, 0.02).startswith("The distance on the route contracts by 2.00%")


def test_growth_and_noise_are_told_apart():
    steps = list(range(0, 40, 5))
    stream = random.Random(0)
    growing = fit_rate(steps, [math.exp(0.03 * step) for step in steps])
    assert "grows by" in verdict_of(growing, None)
    flat = fit_rate(steps, [math.exp(stream.gauss(0, 0.1)) for _ in steps])
    assert verdict_of(flat, None).startswith("No change")
    assert "outside that interval" in verdict_of(growing, 0.01)


def test_the_interval_holds_the_rate_as_often_as_it_says():
    steps, rate, hits, runs = [0, 5, 10, 15, 20], 0.02, 0, 400
    stream = random.Random(1)
    for _ in range(runs):
        fit = fit_rate(steps, [(1 - rate) ** step * math.exp(stream.gauss(0, 0.05)) for step in steps])
        hits += fit.low <= rate <= fit.high
    assert 0.92 <= hits / runs <= 0.98


@pytest.mark.parametrize(("steps", "norms"), [([0], [1.0]), ([0, 5], [1.0, 0.0])])
def test_too_little_to_fit_is_none(steps, norms):
    assert fit_rate(steps, norms) is None
    assert verdict_of(None, None).startswith("Too few looks")


def test_two_looks_have_a_rate_and_no_interval():
    fit = fit_rate([0, 10], [1.0, 0.9])
    assert (fit.low, fit.high) == (None, None)
    assert verdict_of(fit, None) == "Two looks alone: the distance on the route changed by -1.05% a step."


def test_distances_equal_brute_force(tmp_path):
    before = random_model(0)
    after = edited(before, share=0.5)
    save(tmp_path / "a", before, tied=True)
    save(tmp_path / "b", after, tied=True)
    change = {name: (after[name].double() - before[name].double()) for name in before}
    whole = sum(float(c.square().sum()) for c in change.values())
    assert float(squares(tmp_path / "a", tmp_path / "b")["whole"]) == pytest.approx(whole)

    found = Distances(tmp_path / "d.safetensors", str(tmp_path / "a"))
    found.add(0, tmp_path / "b")
    found.add(5, tmp_path / "a")
    down = "model.layers.0.mlp.down_proj.weight"
    chosen = torch.zeros(before[down].shape[1], dtype=torch.bool)
    chosen[[1, 3]] = True
    on = float(change[down][:, chosen].square().sum())
    for name in ("gate", "up"):
        on += float(change[f"model.layers.0.mlp.{name}_proj.weight"][chosen].square().sum())
    norms = found.norms({0: chosen})
    assert norms[0] == pytest.approx((on**0.5, (whole - on) ** 0.5, whole**0.5))
    assert norms[5] == (0, 0, 0)


def test_a_domain_that_fell_further_is_told_to_go_slower(tmp_path):
    run = RunDirectory(tmp_path)
    good, bad = [1.0] * 20, [0.0] * 20
    (note,) = notes_of(run, "math", {0: {"math": good}, 5: {"math": bad}}, "limit")
    assert "try a lower --learning-rate" in note
    assert notes_of(run, "math", {0: {"math": bad}, 5: {"math": bad}}, "limit") == ()


def test_a_difference_off_the_route_is_said_to_be_off_it():
    looks = {0: {"math": [0.5]}, 5: {"math": [0.6]}}
    found = contraction_of({0: (0.0, 1.0, 1.0), 5: (0.0, 0.9, 0.9)}, looks, 3, None, 1e-4)
    assert found.rate is None
    assert found.verdict.startswith("The difference to the reference does not touch the neurons of the route")
    touched = contraction_of({0: (0.5, 1.0, 1.1), 5: (0.4, 0.9, 1.0), 6: (1.0, 1.0, 1.0)}, looks, 3, None, 1e-4)
    assert touched.steps == (0, 5), "norms at steps without an evaluation are left out"
