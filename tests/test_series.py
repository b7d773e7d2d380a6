"""Means over steps: neighbours that resemble each other are not counted twice, in the diagnosis and on the page."""

import math

import numpy as np
import pytest

from counterpoint.diagnosis import conflicts_over_time
from counterpoint.report.cosines import module_cosines, overview_figure
from counterpoint.report.read import LEVELS
from counterpoint.runs.grams import Grams
from counterpoint.series import benjamini_hochberg, series_mean, verdicts
from gram_files import write_grams


def noise(steps, series, carry, seed=0):
    """Unit noise [T, series] in which a share ``carry`` of each step lives on in the next."""
    draws = np.random.default_rng(seed).standard_normal((steps, series))
    for step in range(1, steps):
        draws[step] = carry * draws[step - 1] + math.sqrt(1 - carry**2) * draws[step]
    return draws


@pytest.mark.parametrize(("carry", "most"), [(0.0, 0.06), (0.5, 0.1)])
def test_steps_that_resemble_their_neighbours_do_not_make_noise_significant(carry, most):
    values = noise(200, 1000, carry)
    found = [series_mean(column) for column in values.T]
    assert sum(one.p_value <= 0.05 for one in found) / len(found) <= most
    naive = values.mean(axis=0) / (values.std(axis=0) / math.sqrt(200))
    if carry:
        assert (abs(naive) > 1.96).mean() > 0.2, "steps taken as independent would claim far more"


def test_the_mean_is_that_of_all_steps_and_too_few_have_no_standard_error():
    values = np.arange(22.0)
    assert series_mean(values).mean == 10.5
    blocks = values[2:].reshape(5, 4).mean(axis=1)
    assert series_mean(values).standard_error == pytest.approx(blocks.std(ddof=1) / math.sqrt(5))
    found = series_mean([1.0, math.nan, 3.0])
    assert found.mean == 2.0
    assert math.isnan(found.standard_error)
    assert math.isnan(found.p_value)
    assert math.isnan(series_mean([math.nan]).mean)
    assert math.isnan(series_mean([0.5] * 30).p_value), "a series without variation is not tested"


def test_verdicts_have_the_sign_of_the_mean_and_leave_out_what_is_not_known():
    values = noise(100, 3, 0.0)
    found = [series_mean(column) for column in (values[:, 0] - 2, values[:, 1] + 2, values[:, 2], values[:3, 0])]
    assert verdicts(found) == [-1, 1, 0, 0]
    assert verdicts([]) == []


def test_benjamini_hochberg_against_scipy():
    from scipy.stats import false_discovery_control

    p_values = np.random.default_rng(0).uniform(size=200) ** 3
    assert benjamini_hochberg(list(p_values), 0.05) == (false_discovery_control(p_values) <= 0.05).tolist()


def grams_of(cosine_TG):
    """Grams of two domains with these cosines."""
    steps, groups = cosine_TG.shape
    gram = np.tile(np.eye(2), (steps, groups, 1, 1))
    gram[..., 0, 1] = gram[..., 1, 0] = np.clip(cosine_TG, -1, 1)
    names = tuple(f"layers.{i}.mlp" for i in range(groups))
    return Grams(np.arange(1, steps + 1), gram, names, ("code", "math"), np.ones((steps, groups, 2)), names)


@pytest.mark.parametrize("carry", [0.0, 0.5, 0.8])
def test_the_page_marks_no_noise_where_steps_depend_on_each_other(carry):
    """Steps taken for independent marked a third of all cells at an autocorrelation of 0.8."""
    marked = cells = 0
    for seed in range(20):
        cosines = module_cosines(grams_of(0.1 * noise(100, 20, carry, seed)), LEVELS[0])
        text = overview_figure(cosines)["data"][0]["text"]
        marked += sum(cell != "" for row in text for cell in row)
        cells += sum(map(len, text))
    assert marked / cells <= 0.02


def test_the_page_and_the_diagnosis_of_the_same_grams_agree(tmp_path):
    cosine_TG = 0.1 * noise(90, 8, 0.5) + np.array([0, 0, -0.15, 0, 0.1, 0, 0, 0.05])
    grams = grams_of(cosine_TG)
    write_grams(tmp_path / "grams.jsonl", grams.gram_SGDD, list(grams.groups), ["code", "math"])
    modules = conflicts_over_time(tmp_path).modules
    overall = module_cosines(grams, LEVELS[0])["overall"][0]
    assert [cell["verdict"] for cell in overall] == modules.verdict_GQ[:, 0].tolist()
    assert any(cell["verdict"] for cell in overall)
    assert [cell["mean"] for cell in overall] == pytest.approx(modules.mean_GQ[:, 0].tolist(), abs=1e-4)


def test_a_domain_without_gradient_is_grey_and_no_zero():
    grams = grams_of(0.1 * noise(40, 3, 0.0))
    grams.gram_SGDD[:, 1, 0, :] = grams.gram_SGDD[:, 1, :, 0] = 0.0
    cosines = module_cosines(grams, LEVELS[0])
    assert set(cosines["cosine"][0][1]) == {None}
    assert cosines["overall"][0][1] == {"mean": None, "standard_error": None, "negative": None, "verdict": 0}
    assert overview_figure(cosines)["layout"]["plot_bgcolor"] == "@faint", "zero is as pale as the page"
