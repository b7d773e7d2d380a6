"""Conflicts that were planted are found, and none elsewhere: power and false positives at several noise levels."""

import pytest
import torch

from conflicts_helpers import Planted, SameDomain
from counterpoint.diagnosis._chance import pairs_of
from counterpoint.diagnosis.conflicts import measure

PLANTED = "layers.1.mlp"


def by_module(source):
    (found,) = measure(source, groupings=("module",))
    return found.grouping("module")


def rates(noise, repeats, **settings):
    """Power, share of null tests with p <= 0.05, share of null tests found after correction, mean debiased cosine."""
    hits, null_p, false, debiased, plain = 0, [], 0, [], []
    for seed in range(repeats):
        found = by_module(Planted(noise=noise, seed=seed, **settings))
        at = (found.groups.index(PLANTED), 0)
        null = torch.ones_like(found.verdict_GQ, dtype=torch.bool)
        null[at] = False
        hits += int(found.verdict_GQ[at] < 0)
        null_p.append(found.p_value_GQ[null])
        false += int((found.verdict_GQ[null] != 0).sum())
        debiased.append(float(found.debiased_GQ[at]))
        plain.append(float(found.cosine_GQ[at]))
    p_values, known = torch.cat(null_p), torch.tensor(debiased).isfinite()
    return {
        "power": hits / repeats,
        "raw": float((p_values <= 0.05).double().mean()),
        "false": false / len(p_values),
        "debiased": float(torch.tensor(debiased)[known].mean()),
        "plain": sum(plain) / repeats,
        "tests": len(p_values),
    }


@pytest.mark.parametrize(("noise", "power"), [(1.0, 1.0), (2.0, 0.7)])
def test_a_planted_conflict_is_found_and_none_elsewhere(noise, power):
    found = rates(noise, 12)
    assert found["power"] >= power
    assert found["raw"] <= 0.07, "nominal 0.05, on few draws"
    assert found["false"] <= 0.02
    assert found["debiased"] == pytest.approx(-0.5, abs=0.06)


def test_where_noise_rules_nothing_is_claimed():
    found = rates(100.0, 12)
    assert found["raw"] <= 0.05
    assert found["false"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.5, 2.0, 5.0, 30.0])
def test_power_and_false_positives_over_noise(noise, capsys):
    found = rates(noise, 50)
    with capsys.disabled():
        print(f"\nnoise {noise:g}: " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()))
    assert found["raw"] <= 0.055, "nominal 0.05; 1150 tests have a standard error of 0.006"
    assert found["false"] <= 0.01


def test_the_rest_of_the_planted_module_tells_the_same_story():
    (found,) = measure(Planted(noise=1.0))
    tensors = found.grouping("tensor")
    conflicts = {tensors.groups[g] for g, q in (tensors.verdict_GQ < 0).nonzero().tolist()}
    assert {name for name in conflicts if PLANTED in name} == {
        f"model.layers.1.mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")
    }
    assert len(conflicts) == 3
    layers = found.grouping("layer")
    assert [layers.groups[g] for g, _ in (layers.verdict_GQ < 0).nonzero().tolist()] == ["layers.1"]


def test_one_domain_under_two_names_has_no_conflict_and_cosine_one():
    found = [by_module(SameDomain(domains=2, noise=2.0, seed=seed)) for seed in range(4)]
    against, together, tested = (sum(counts) for counts in zip(*(one.counts() for one in found), strict=True))
    assert against == 0
    assert together > 0.8 * tested
    cosine = torch.cat([one.debiased_GQ for one in found])
    known = cosine.isfinite()
    assert float(known.double().mean()) > 0.9
    assert float(cosine[known].mean()) == pytest.approx(1, abs=0.06)
    assert float(torch.cat([one.cosine_GQ for one in found]).mean()) < 0.9, "the plain cosine is attenuated"


def test_strong_conflicts_everywhere_are_all_found_and_in_their_pair_alone():
    found = by_module(Planted(noise=1.0, cosine=-0.9, where="layers"))
    assert found.counts()[0] == found.counts(0)[0] == len(found.groups)


def test_a_domain_with_itself_agrees_less_the_more_noise_there_is():
    halves = [by_module(SameDomain(domains=2, noise=noise)).split_half_GD.mean() for noise in (0.1, 3.0, 30.0)]
    assert halves[0] > 0.95
    assert halves[0] > halves[1] > halves[2]


def test_pairs_come_in_one_order():
    assert pairs_of(3) == [(0, 1), (0, 2), (1, 2)]
    assert by_module(Planted()).pairs == (("code", "math"), ("code", "qa"), ("math", "qa"))
