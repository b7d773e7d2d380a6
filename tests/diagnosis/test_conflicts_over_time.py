"""Conflicts over a run: planted means are found, neighbours that resemble each other are not counted twice."""

import math

import pytest
import torch

from counterpoint.diagnosis import conflicts_over_time
from counterpoint.diagnosis.conflict_analysis.over_time import block_means
from counterpoint.errors import CounterpointError, RunError
from gram_files import write_grams

GROUPS = ("embedding", "layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp")
DOMAINS = ("code", "math", "qa")


def write(folder, cosine_TG, absent=(), domains=DOMAINS):
    """Grams whose first pair has these cosines; the norms differ, every other pair is orthogonal."""
    steps, groups = cosine_TG.shape
    gram = torch.diag(torch.tensor([4.0, 9.0, 1.0])[: len(domains)]).repeat(steps, groups, 1, 1)
    gram[:, :, 0, 1] = gram[:, :, 1, 0] = 6 * cosine_TG
    for step, domain in absent:
        gram[step, :, domain] = gram[step, :, :, domain] = torch.nan
    write_grams(folder / "grams.jsonl", gram, GROUPS[:groups], domains, strategy_groups=["all"])
    return folder


def noise(steps, groups=5, scale=0.1, carry=0.0, seed=0):
    """Noise of standard deviation ``scale`` in which a share ``carry`` of each step lives on in the next."""
    draws = torch.randn(steps, groups, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for step in range(1, steps):
        draws[step] = carry * draws[step - 1] + math.sqrt(1 - carry**2) * draws[step]
    return draws * scale


def test_a_planted_mean_is_found_among_noisy_steps(tmp_path):
    mean = torch.tensor([0.0, 0.0, -0.12, 0.0, 0.08])
    found = conflicts_over_time(write(tmp_path, noise(100) + mean), window=20)
    modules = found.grouping("module")
    assert modules.verdict_GQ[:, 0].tolist() == [0, 0, -1, 0, 1]
    assert (modules.conflicts, modules.synergies, modules.tested) == (1, 1, 5), "constant zeros are not tested"
    assert modules.mean_GQ[2, 0] == pytest.approx(-0.12, abs=0.03)
    assert modules.standard_error_GQ[2, 0] == pytest.approx(0.01, rel=0.6)
    assert modules.negative_share_GQ[0, 0] == pytest.approx(0.5, abs=0.15)
    assert modules.negative_share_GQ[2, 0] > 0.8
    assert modules.noise_size_GQ[0, 0] == pytest.approx(0.0674, rel=0.3), "median |x| of a normal of deviation 0.1"
    assert found.steps[:2] == (1, 2)


def test_layers_and_the_whole_model_are_sums_of_grams(tmp_path):
    cosine = noise(30)
    found = conflicts_over_time(write(tmp_path, cosine))
    assert found.grouping("layer").groups == ("embedding", "layers.0", "layers.1")
    expected = (6 * cosine[:, 1:3].sum(1)) / math.sqrt(8 * 18)
    torch.testing.assert_close(found.grouping("layer").cosine_TGQ[:, 1, 0], expected, rtol=1e-5, atol=1e-6)
    whole = found.grouping("global").cosine_TGQ[:, 0, 0]
    torch.testing.assert_close(whole, cosine.mean(1), rtol=1e-5, atol=1e-6)


def test_the_moving_average_is_centred_and_leaves_absent_steps_out(tmp_path):
    cosine = noise(20)
    found = conflicts_over_time(write(tmp_path, cosine, absent=[(5, 0)]), window=3).grouping("module")
    assert found.cosine_TGQ[5, :, 0].isnan().all()
    average = found.moving_average_TGQ[:, 0, 0]
    assert float(average[10]) == pytest.approx(float(cosine[9:12, 0].mean()), abs=1e-6)
    assert float(average[5]) == pytest.approx(float((cosine[4, 0] + cosine[6, 0]) / 2), abs=1e-6)
    assert float(average[0]) == pytest.approx(float(cosine[:2, 0].mean()), abs=1e-6)


@pytest.mark.parametrize(("carry", "most"), [(0.0, 0.06), (0.5, 0.1)])
def test_steps_that_resemble_their_neighbours_do_not_make_noise_significant(carry, most):
    from counterpoint.diagnosis.conflict_analysis.noise import student_t_p_value

    values = noise(200, groups=1000, carry=carry)
    found = [block_means(column) for column in values.unbind(1)]
    p_values = [float(student_t_p_value(torch.tensor(mean / error), blocks - 1)) for mean, error, blocks in found]
    assert sum(p <= 0.05 for p in p_values) / len(p_values) <= most
    naive = values.mean(0) / (values.std(0) / math.sqrt(200))
    if carry:
        assert float((naive.abs() > 1.96).double().mean()) > 0.2, "steps taken as independent would claim far more"


def test_too_few_steps_have_no_standard_error():
    mean, error, blocks = block_means(torch.tensor([1.0, math.nan, 3.0]))
    assert (mean, blocks) == (2.0, 0)
    assert math.isnan(error)


def test_runs_that_cannot_tell_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"there are no Grams here.*diagnose conflicts MODEL CONFIG"):
        conflicts_over_time(tmp_path)
    with pytest.raises(RunError, match=r"in 16 recorded steps.*\(code and math met in 12\).*\(run.grams_every: 1\)"):
        conflicts_over_time(write(tmp_path, noise(12)))
    turns = [(step, domain) for step in range(30) for domain in range(3) if domain != step // 10]
    with pytest.raises(RunError, match="met in 0"):
        conflicts_over_time(write(tmp_path, noise(30), absent=turns))
    with pytest.raises(CounterpointError, match="Give a window of 1 or more"):
        conflicts_over_time(write(tmp_path, noise(30)), window=0)
    path = tmp_path / "grams.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0][:-9] + '"}\n')
    with pytest.raises(RunError, match=r"grams.jsonl, line 31: the Grams cannot be read"):
        conflicts_over_time(tmp_path)
