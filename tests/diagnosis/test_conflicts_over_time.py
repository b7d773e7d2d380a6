"""Conflicts over a run: planted means are found, neighbours that resemble each other are not counted twice."""

import math

import pytest
import torch

from counterpoint.diagnosis import conflicts_over_time
from counterpoint.errors import RunError
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
    found = conflicts_over_time(write(tmp_path, noise(100) + mean))
    modules = found.modules
    assert modules.verdict_GQ[:, 0].tolist() == [0, 0, -1, 0, 1]
    assert int(modules.p_value_GQ.isfinite().sum()) == 5, "constant zeros are not tested"
    assert modules.mean_GQ[2, 0] == pytest.approx(-0.12, abs=0.03)
    assert modules.standard_error_GQ[2, 0] == pytest.approx(0.01, rel=0.6)
    assert modules.negative_share_GQ[0, 0] == pytest.approx(0.5, abs=0.15)
    assert modules.negative_share_GQ[2, 0] > 0.8
    assert found.steps[:2] == (1, 2)


def test_the_whole_model_is_the_sum_of_grams(tmp_path):
    cosine = noise(30)
    found = conflicts_over_time(write(tmp_path, cosine))
    assert float(found.whole.mean_GQ[0, 0]) == pytest.approx(float(cosine.mean()), abs=1e-6)


def test_absent_steps_are_left_out(tmp_path):
    cosine = noise(20)
    found = conflicts_over_time(write(tmp_path, cosine, absent=[(5, 0)])).modules
    kept = torch.cat([cosine[:5, 0], cosine[6:, 0]])
    assert float(found.mean_GQ[0, 0]) == pytest.approx(float(kept.mean()), abs=1e-6)
    assert float(found.negative_share_GQ[0, 0]) == pytest.approx(float((kept < 0).double().mean()))


def test_runs_that_cannot_tell_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"there are no Grams here.*diagnose RUN --only conflicts"):
        conflicts_over_time(tmp_path)
    with pytest.raises(RunError, match=r"in 16 recorded steps.*\(code and math met in 12\).*\(run.grams_every: 1\)"):
        conflicts_over_time(write(tmp_path, noise(12)))
    turns = [(step, domain) for step in range(30) for domain in range(3) if domain != step // 10]
    with pytest.raises(RunError, match="met in 0"):
        conflicts_over_time(write(tmp_path, noise(30), absent=turns))
    path = tmp_path / "grams.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0][:-9] + '"}\n')
    with pytest.raises(RunError, match=r"grams.jsonl, line 31: the Grams cannot be read"):
        conflicts_over_time(tmp_path)


def test_a_result_prints_itself(tmp_path):
    mean = torch.tensor([0.0, 0.0, -0.12, 0.0, 0.08])
    found = conflicts_over_time(write(tmp_path, noise(100) + mean))
    assert "Over 100 recorded steps, 1 of 5 (module, pair of domains) combinations conflict" in str(found)
    assert "10 more cannot be known" in str(found).replace("\n", " ")
    assert found == found
