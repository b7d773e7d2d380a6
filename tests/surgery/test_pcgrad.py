"""PCGrad from Grams against PCGrad on vectors."""

import itertools
from collections import Counter

import pytest
import torch

from counterpoint.surgery import Context
from counterpoint.surgery.weightings.pcgrad import pcgrad, project


def gradients(num_domains: int, size: int = 7, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_domains, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(vectors_DP: torch.Tensor) -> torch.Tensor:
    return (vectors_DP @ vectors_DP.T).unsqueeze(0)


def context(num_domains: int, groups: tuple[str, ...] = ("g",), seed: int = 0, step: int = 0) -> Context:
    return Context(groups, tuple("abcdefgh"[:num_domains]), seed, step)


def everyone(num_domains: int) -> torch.Tensor:
    """All pairs count."""
    return torch.ones(1, num_domains, num_domains, dtype=torch.bool)


@pytest.mark.parametrize("num_domains", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_paper_for_given_orders(explicit_pcgrad, num_domains, seed):
    vectors_DP = gradients(num_domains, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    others = [[j for j in range(num_domains) if j != i] for i in range(num_domains)]
    orders = [[o[k] for k in torch.randperm(len(o), generator=generator).tolist()] for o in others]
    order_GDD = torch.tensor([orders], dtype=torch.int64).view(1, num_domains, num_domains - 1)
    weights_D = project(gram(vectors_DP), order_GDD, everyone(num_domains))[0].sum(0)
    torch.testing.assert_close(
        weights_D @ vectors_DP, explicit_pcgrad(list(vectors_DP), orders), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("num_domains", [2, 3, 4])
def test_own_order_gives_one_of_the_results_the_paper_allows(every_pcgrad, num_domains):
    vectors_DP = gradients(num_domains, size=3, seed=5)
    assert (gram(vectors_DP) < 0).any()
    allowed = torch.stack(every_pcgrad(list(vectors_DP)))
    for step in range(8):
        result = pcgrad(gram(vectors_DP), context(num_domains, step=step))[0] @ vectors_DP
        assert (allowed - result).abs().amax(dim=1).min() < 1e-10


def test_all_orders_are_drawn_equally_often(every_pcgrad):
    vectors_DP = gradients(3, size=3, seed=17)
    allowed = rounded(every_pcgrad(list(vectors_DP)))
    assert len(allowed) == 8  # each domain's two orders matter
    steps = range(400)
    found = Counter(rounded_one(pcgrad(gram(vectors_DP), context(3, step=step))[0] @ vectors_DP) for step in steps)
    assert set(found) == allowed
    assert min(found.values()) > 25  # 50 expected, standard deviation 6.6


def test_projecting_against_projected_gradients_is_another_method(explicit_pcgrad):
    """The control: a common misreading of the algorithm, which must not pass for it."""
    vectors_DP = gradients(3, size=3, seed=5)
    misread = list(vectors_DP.clone())
    for i, j in itertools.permutations(range(3), 2):
        inner = misread[i] @ misread[j]
        if inner < 0:
            misread[i] = misread[i] - inner / (misread[j] @ misread[j]) * misread[j]
    wrong = sum(misread)
    orders = [[j for j in range(3) if j != i] for i in range(3)]
    right = explicit_pcgrad(list(vectors_DP), orders)
    ours = project(gram(vectors_DP), torch.tensor([orders]), everyone(3))[0].sum(0) @ vectors_DP
    assert (ours - right).norm() < 1e-12
    assert (ours - wrong).norm() > 0.05 * right.norm()


def test_two_domains_no_longer_conflict():
    vectors_DP = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weights_D = pcgrad(gram(vectors_DP), context(2))[0]
    torch.testing.assert_close(weights_D, torch.tensor([2.0, 1.5], dtype=torch.float64))
    assert (vectors_DP @ (weights_D @ vectors_DP) >= 0).all()


def test_no_conflict_gives_exact_ones():
    vectors_DP = gradients(4).abs()
    assert pcgrad(gram(vectors_DP), context(4)).eq(1).all()


def test_orthogonal_gradients_give_exact_ones():
    assert pcgrad(torch.eye(3, dtype=torch.float64).unsqueeze(0), context(3)).eq(1).all()


def test_a_zero_gradient_changes_nothing(explicit_pcgrad):
    vectors_DP = gradients(3, seed=1)
    vectors_DP[1] = 0
    weights_D = pcgrad(gram(vectors_DP), context(3))[0]
    without = pcgrad(gram(vectors_DP[[0, 2]]), context(2))[0]
    assert weights_D.isfinite().all()
    assert weights_D[1] == 1
    torch.testing.assert_close(weights_D[[0, 2]], without)


def test_a_gradient_whose_square_underflows_is_not_projected_against():
    gram_GDD = torch.tensor([[[1.0, -1e-20], [-1e-20, 0.0]]], dtype=torch.float64)
    assert pcgrad(gram_GDD, context(2)).eq(1).all()


def test_opposite_gradients_cancel():
    vectors_DP = torch.stack([gradients(1)[0], -gradients(1)[0]])
    update = pcgrad(gram(vectors_DP), context(2))[0] @ vectors_DP
    assert update.norm() < 1e-12


def test_groups_do_not_see_each_other():
    grams = torch.cat([gram(gradients(4, seed=s)) for s in range(5)])
    names = tuple(f"layers.{s}" for s in range(5))
    together = pcgrad(grams, context(4, names))
    for row, name in enumerate(names):
        alone = pcgrad(grams[row : row + 1], context(4, (name,)))
        assert torch.equal(together[row], alone[0])


def test_order_depends_on_seed_step_and_group_alone():
    def draw(seed: int, step: int, group: str) -> float:
        return torch.rand(1, generator=context(3, (group,), seed, step).generator(group)).item()

    assert draw(1, 2, "g") == draw(1, 2, "g")
    assert len({draw(1, 2, "g"), draw(2, 2, "g"), draw(1, 3, "g"), draw(1, 2, "h"), draw(12, 2, "g")}) == 5
    # A golden value: the same order on every machine and in every process, whatever Python's hash seed is.
    assert draw(0, 0, "layers.0.mlp") == pytest.approx(0.967963457107544, abs=1e-7)


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    pcgrad(gram(gradients(5)), context(5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_domains", [2, 3, 4])
def test_torchjd_gives_results_of_the_same_set(every_pcgrad, num_domains):
    torchjd = pytest.importorskip("torchjd.aggregation", reason="the extra torchjd is not installed")
    vectors_DP = gradients(num_domains, size=3, seed=17)
    ours = [pcgrad(gram(vectors_DP), context(num_domains, step=s))[0] @ vectors_DP for s in range(100)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = [torchjd.PCGradWeighting()(gram(vectors_DP)[0]) @ vectors_DP for _ in range(100)]
    if num_domains == 2:
        torch.testing.assert_close(ours[0], theirs[0])
    if num_domains == 3:
        assert rounded(ours) == rounded(theirs)
    allowed = torch.stack(every_pcgrad(list(vectors_DP)))
    for result in (*ours, *theirs):
        assert (allowed - result).abs().amax(dim=1).min() < 1e-10


def rounded(results: list[torch.Tensor]) -> set[tuple[float, ...]]:
    return {rounded_one(result) for result in results}


def rounded_one(result: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(x, 9) + 0.0 for x in result.tolist())
