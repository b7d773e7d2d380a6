"""The radix selection finds what sorting finds, ties included, whatever the tensors and budgets."""

import pytest
import torch

from counterpoint import topk
from counterpoint.topk import Ranking


def brute_force(tensors, count):
    """The top ``count`` in one vector; equal scores in model order."""
    joined = torch.cat([tensor.flatten() for tensor in tensors.values()])
    order = joined.double().argsort(descending=True, stable=True)[:count]
    chosen = torch.zeros(len(joined), dtype=torch.bool)
    chosen[order] = True
    parts = chosen.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(tensors.items(), parts, strict=True)}


def normal(generator, shape):
    return torch.randn(shape, generator=generator).abs()


def tiny(generator, shape):
    """Denormal numbers beside large ones."""
    return torch.randn(shape, generator=generator).abs() * 10.0 ** torch.randint(-44, 30, shape, generator=generator)


def tied(generator, shape):
    return torch.randint(0, 4, shape, generator=generator).float()


def rounded(generator, shape):
    return torch.randn(shape, generator=generator).abs().bfloat16().float()


def equal(generator, shape):
    return torch.ones(shape)


@pytest.mark.parametrize("kind", [normal, tiny, tied, rounded, equal])
@pytest.mark.parametrize("seed", range(3))
def test_radix_equals_sorting(kind, seed, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 7)
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"t{i}": kind(generator, shape) for i, shape in enumerate([(5, 7), (11,), (3, 4, 2), (1,), (30, 3)])}
    ranking = Ranking.of(list(tensors), lambda name: tensors[name])
    positive = sum(int((tensor > 0).sum()) for tensor in tensors.values())
    assert ranking.num_candidates == positive
    counts = [1, 2, positive // 3, positive // 2, positive - 1, positive]
    for count, cut in zip(counts, ranking.cuts(counts), strict=True):
        expected = brute_force(tensors, count)
        for name, tensor in tensors.items():
            assert torch.equal(cut.mask(name, tensor), expected[name]), (count, name)


@pytest.mark.parametrize("kind", [normal, tiny, tied])
def test_the_kth_largest_is_the_one_that_sorting_finds(kind):
    generator = torch.Generator().manual_seed(0)
    tensors = {str(i): kind(generator, (size,)) for i, size in enumerate((40, 7, 100))}
    ranking = Ranking.of(list(tensors), lambda name: tensors[name])
    ordered = torch.cat(list(tensors.values())).sort(descending=True).values
    counts = [1, 5, ranking.num_candidates]
    assert ranking.largest(counts) == [ordered[count - 1].item() for count in counts]


def test_zeros_are_never_chosen():
    tensors = {"a": torch.tensor([0.0, 3.0, 0.0]), "b": torch.tensor([[2.0], [0.0]])}
    (cut,) = Ranking.of(["a", "b"], lambda name: tensors[name]).cuts([2])
    assert cut.mask("a", tensors["a"]).tolist() == [False, True, False]
    assert cut.mask("b", tensors["b"]).tolist() == [[True], [False]]


def test_more_than_the_candidates_is_our_own_mistake():
    tensors = {"a": torch.tensor([0.0, 3.0])}
    with pytest.raises(AssertionError):
        Ranking.of(["a"], lambda name: tensors[name]).cuts([2])


def test_no_tensor_is_kept():
    """Scores are asked for again in every pass: three passes, each tensor once in each."""
    asked = []

    def scores(name):
        asked.append(name)
        return torch.rand(6, generator=torch.Generator().manual_seed(int(name)))

    Ranking.of(["1", "2"], scores).cuts([3, 5])
    assert asked == ["1", "2"] * 3
