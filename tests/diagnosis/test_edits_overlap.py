"""Overlap of neuron sets: planted overlap is found, chance is not; the sketch of a matrix against its decomposition."""

import itertools

import pytest
import torch

from counterpoint.diagnosis._chance import chance_of, neuron_overlap, sizes_in_layers, top_neurons
from counterpoint.diagnosis._edit_spectrum import Compression, exact_spectrum, random_spectrum


def random_sets(generator, layers=3, neurons=60, share=0.1, tilt=None):
    """Two independent sets; ``tilt`` multiplies the scores of a layer, the same for both."""
    tilt = tilt or [1.0] * layers
    scores = [
        {i: tilt[i] * torch.rand(neurons, generator=generator, dtype=torch.float64) for i in range(layers)}
        for _ in range(2)
    ]
    return [top_neurons(own, share) for own in scores]


def test_planted_overlap_is_found():
    first = {0: torch.arange(200) < 20, 1: torch.zeros(200, dtype=torch.bool)}
    second = {0: (torch.arange(200) >= 10) & (torch.arange(200) < 30), 1: torch.zeros(200, dtype=torch.bool)}
    found = neuron_overlap(first, second)
    assert (found.neurons, found.first, found.second, found.shared) == (400, 20, 20, 10)
    assert found.jaccard == pytest.approx(1 / 3)
    assert found.over_all.p_value < 1e-8
    assert found.within_layers.p_value < 1e-6
    assert found.within_layers.jaccard == pytest.approx(2 / 38, rel=0.05)
    assert found.over_all.jaccard == pytest.approx(1 / 39, rel=0.05)


def test_false_positives_stay_below_their_nominal_rate():
    generator = torch.Generator().manual_seed(0)
    trials = [neuron_overlap(*random_sets(generator)) for _ in range(200)]
    for name in ("over_all", "within_layers"):
        rate = sum(getattr(found, name).p_value < 0.05 for found in trials) / len(trials)
        assert rate <= 0.05 + 1.96 * (0.05 * 0.95 / 200) ** 0.5
        assert rate > 0.005  # a test that never fires would pass above


def test_layers_that_change_more_fool_one_null_and_not_the_other():
    generator = torch.Generator().manual_seed(1)
    trials = [neuron_overlap(*random_sets(generator, tilt=[1, 1, 3])) for _ in range(200)]
    assert sum(found.over_all.p_value < 0.05 for found in trials) > 60
    assert sum(found.within_layers.p_value < 0.05 for found in trials) <= 200 * 0.05 + 6


def test_p_value_within_layers_counts_all_arrangements():
    first = {0: torch.tensor([True, True, False]), 1: torch.tensor([True, False, False, False])}
    second = {0: torch.tensor([True, False, False]), 1: torch.tensor([True, True, False, False])}
    shared = [
        sum(bool(first[0][i]) for i in a) + sum(bool(first[1][i]) for i in b)
        for a in itertools.combinations(range(3), 1)
        for b in itertools.combinations(range(4), 2)
    ]
    sizes = [(int(a.sum()), int(second[layer].sum()), len(a)) for layer, a in first.items()]
    for least in range(4):
        expected = sum(found >= least for found in shared) / len(shared)
        assert chance_of(least, sizes).p_value == pytest.approx(expected)


def test_shuffles_agree_with_the_exact_levels():
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.cat(list(own.values())) for own in random_sets(generator, neurons=200, tilt=[1, 1, 2]))
    layers = torch.arange(600) // 200
    shared = int((first & second).sum())
    reached, total = 0, 0.0
    for _ in range(2000):
        shuffled = torch.cat([own[torch.randperm(200, generator=generator)] for own in second.split(200)])
        both = int((first & shuffled).sum())
        reached += both >= shared
        total += both / int((first | shuffled).sum())
    found = chance_of(shared, sizes_in_layers(first, second, layers))
    assert found.jaccard == pytest.approx(total / 2000, rel=0.03)
    assert found.p_value == pytest.approx(reached / 2000, abs=0.04)


def test_top_neurons_never_holds_unchanged_ones():
    scores = {0: torch.tensor([0.0, 2.0, 0.0]), 3: torch.tensor([0.0, 0.0, 0.0])}
    assert {k: v.tolist() for k, v in top_neurons(scores, 0.5).items()} == {
        0: [False, True, False],
        3: [False, False, False],
    }


def matrix(kind, rows=600, columns=900):
    generator = torch.Generator().manual_seed(3)
    full = torch.randn(rows, columns, generator=generator)
    if kind == "random":
        return full
    rank = 5
    low = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    return low if kind == "low rank" else low + full


@pytest.mark.parametrize("kind", ["random", "low rank", "low rank in noise"])
def test_a_sketch_tells_what_a_decomposition_tells(kind):
    full = matrix(kind)
    sketch = Compression(full.shape)
    for start in range(0, len(full), 77):
        sketch.add(full[start : start + 77].clone(), start)
    found, exact = sketch.spectrum(1.0), exact_spectrum(full)
    if kind == "random":
        chance = random_spectrum(tuple(full.shape))
        assert found.effective_rank == pytest.approx(chance.effective_rank, rel=0.02)
        assert found.top_8 == pytest.approx(chance.top_8, rel=0.1)
        assert found.top_8 < exact.top_8
    else:
        assert found.top_8 == pytest.approx(exact.top_8, rel=0.05)
    if kind == "low rank":
        assert found.effective_rank == pytest.approx(exact.effective_rank, rel=0.05)


def test_a_zero_matrix_has_no_spectrum():
    assert exact_spectrum(torch.zeros(4, 5)) is None
    assert Compression((600, 600)).spectrum(0.0) is None
