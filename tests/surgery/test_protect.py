"""Protected domains, against quadratic programs on explicit vectors."""

import itertools

import pytest
import torch

from counterpoint.errors import StrategyError
from counterpoint.surgery import Context, Surgeon, build_weighting
from counterpoint.surgery.weightings.base import PATIENCE
from counterpoint.surgery.weightings.pcgrad import pcgrad, project
from counterpoint.surgery.weightings.protect import Protection, cone_multipliers, give_way

NAMES = tuple("abcdefgh")


def gradients(num_domains: int, size: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_domains, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(vectors_DP: torch.Tensor) -> torch.Tensor:
    return (vectors_DP @ vectors_DP.T).unsqueeze(0)


def context(num_domains: int, step: int = 0) -> Context:
    return Context(("g",), NAMES[:num_domains], 0, step)


def nearest_in_cone(vector_P: torch.Tensor, normals_MP: torch.Tensor) -> torch.Tensor:
    """The truth by brute force on vectors: of the projections onto all faces of the cone the nearest inside it."""
    nearest = torch.zeros_like(vector_P)
    unit_MP = torch.nn.functional.normalize(normals_MP, dim=1)
    for size in range(len(normals_MP) + 1):
        for face in itertools.combinations(range(len(normals_MP)), size):
            normals_SP = unit_MP[list(face)]
            candidate = vector_P - torch.linalg.pinv(normals_SP) @ (normals_SP @ vector_P)
            inside = bool((unit_MP @ candidate >= -1e-9).all())
            if inside and (candidate - vector_P).norm() < (nearest - vector_P).norm():
                nearest = candidate
    return nearest


def parts(vectors_DP: torch.Tensor, protected: list[int]) -> torch.Tensor:
    """Every domain's part of the update as explicit vectors, unprotected ones not yet treated among themselves."""
    num_domains = len(vectors_DP)
    protected_D = torch.tensor([d in protected for d in range(num_domains)])
    identity = torch.eye(num_domains, dtype=torch.float64).unsqueeze(0)
    everyone = torch.ones(1, num_domains, num_domains, dtype=torch.bool)
    return give_way(identity, gram(vectors_DP), everyone, protected_D)[0] @ vectors_DP


@pytest.mark.parametrize("num_protected", range(1, 8))
@pytest.mark.parametrize("seed", range(6))
def test_the_others_take_the_nearest_vector_that_opposes_nobody(num_protected, seed):
    vectors_DP = gradients(8, size=8, seed=seed)
    protected = list(range(num_protected))
    found_DP = parts(vectors_DP, protected)
    assert torch.equal(found_DP[protected], vectors_DP[protected])
    for i in range(num_protected, 8):
        torch.testing.assert_close(found_DP[i], nearest_in_cone(vectors_DP[i], vectors_DP[protected]))
        assert (vectors_DP[protected] @ found_DP[i]).min() > -1e-9


DEPENDENT = {
    "equal": [[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]],
    "parallel": [[1.0, 2.0, 0.0], [1e-3, 2e-3, 0.0]],
    "opposite": [[1.0, 2.0, 0.0], [-2.0, -4.0, 0.0]],
    "with zero": [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]],
    "four in a plane": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]],
    "a whole plane": [[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]],
    "a whole space": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, -1.0, -1.0]],
    "nearly equal": [[1.0, 2.0, 0.0], [1.0, 2.0, 1e-7]],
    "nearly opposite": [[1.0, 2.0, 0.0], [-1.0, -2.0, 1e-4]],
}


@pytest.mark.parametrize("kind", DEPENDENT)
@pytest.mark.parametrize("seed", range(5))
def test_dependent_gradients_do_no_harm(kind, seed):
    normals_MP = torch.tensor(DEPENDENT[kind], dtype=torch.float64)
    vector_P = gradients(1, size=3, seed=seed)[0]
    found_DP = parts(torch.cat([normals_MP, vector_P[None]]), list(range(len(normals_MP))))
    # A Gram squares the condition of the vectors, so nearly dependent ones cost half the digits.
    torch.testing.assert_close(found_DP[-1], nearest_in_cone(vector_P, normals_MP), rtol=0, atol=1e-6)
    assert (normals_MP @ found_DP[-1]).min() > -1e-6


@pytest.mark.parametrize("kind", ["opposite", "in a plane"])
def test_dependent_gradients_give_no_huge_weights(kind):
    """Larger active sets are tried last: rounding could let a singular one pass with weights that cancel."""
    protected_D = torch.tensor([True, True, True, False])
    everyone = torch.ones(1, 4, 4, dtype=torch.bool)
    identity = torch.eye(4, dtype=torch.float64)[None]
    for seed in range(300):
        vectors_DP = gradients(4, size=3, seed=seed)
        vectors_DP[1] = -0.3 * vectors_DP[0]
        if kind == "in a plane":
            vectors_DP[2] = -0.7 * vectors_DP[0] - 1e-9 * vectors_DP[2]
        coefficients = give_way(identity, gram(vectors_DP), everyone, protected_D)[0, 3]
        assert (coefficients * vectors_DP.norm(dim=1)).abs().max() < 1e4


def test_one_projection_after_the_other_is_another_method():
    """The control: projecting against each protected gradient in turn leaves conflicts, which must not pass for it."""
    left = []
    for seed in range(50):
        vectors_DP = gradients(4, size=4, seed=seed)
        x = vectors_DP[3].clone()
        for p in vectors_DP[:3]:
            x -= (x @ p).clamp(max=0) / (p @ p) * p
        left.append((vectors_DP[:3] @ x / vectors_DP[:3].norm(dim=1)).min() / x.norm())
        assert (vectors_DP[:3] @ parts(vectors_DP, [0, 1, 2])[3]).min() > -1e-9
    assert torch.stack(left).min() < -0.1


@pytest.mark.parametrize("protect", [["a"], ["c"], ["b", "d"]])
@pytest.mark.parametrize("seed", range(3))
def test_unprotected_parts_are_treated_among_themselves_first(explicit_pcgrad, protect, seed):
    vectors_DP = gradients(4, size=5, seed=seed)
    free = [d for d in range(4) if NAMES[d] not in protect]
    own = [d for d in range(4) if NAMES[d] in protect]
    choices = []
    for i in free:
        choices.append([])
        for order in itertools.permutations([j for j in free if j != i]):
            alone = [order if d == i else () for d in range(4)]
            part = explicit_pcgrad(list(vectors_DP), alone) - vectors_DP.sum(0) + vectors_DP[i]
            choices[-1].append(nearest_in_cone(part, vectors_DP[own]))
    allowed = [vectors_DP[own].sum(0) + torch.stack(chosen).sum(0) for chosen in itertools.product(*choices)]
    weighting = build_weighting({"type": "pcgrad", "protect": protect})
    for step in range(5):
        found = weighting(gram(vectors_DP), context(4, step))[0] @ vectors_DP
        assert (torch.stack(allowed) - found).norm(dim=1).min() < 1e-9


def test_nothing_protected_is_pcgrad():
    grams = torch.cat([gram(gradients(4, seed=s)) for s in range(5)])
    five = Context(tuple("vwxyz"), NAMES[:4])
    assert torch.equal(build_weighting("pcgrad")(grams, five), pcgrad(grams, five))
    absent = build_weighting({"type": "pcgrad", "protect": ["h"]})
    assert torch.equal(absent(grams, five), pcgrad(grams, five))


@pytest.mark.parametrize("name", ["pcgrad", "ema"])
def test_no_conflict_gives_exact_ones(name):
    weighting = build_weighting({"type": name, "protect": ["a", "c"]})
    assert weighting(gram(gradients(4).abs()), context(4)).eq(1).all()
    assert weighting(torch.eye(4, dtype=torch.float64)[None], context(4)).eq(1).all()


def test_conflicts_among_the_protected_stay():
    vectors_DP = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    weighting = build_weighting({"type": "pcgrad", "protect": ["a", "b"]})
    assert weighting(gram(vectors_DP), context(2)).eq(1).all()
    one = build_weighting({"type": "pcgrad", "protect": ["a"]})
    torch.testing.assert_close(one(gram(vectors_DP), context(2)), torch.tensor([[2.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("name", ["pcgrad", "ema"])
def test_scale_and_the_order_of_domains_do_not_matter(name):
    """With one unprotected domain nothing is drawn, so every permutation gives the same update."""
    vectors_DP = gradients(4, seed=2)
    spec = {"type": name, "protect": ["a", "b", "c"]}
    expected = build_weighting(spec)(gram(vectors_DP), context(4))[0]
    assert (expected[:3] > 1).any()
    for factor in (1e-12, 1e12):
        torch.testing.assert_close(build_weighting(spec)(gram(factor * vectors_DP), context(4))[0], expected)
    order = [2, 0, 3, 1]
    permuted = Context(("g",), tuple(NAMES[d] for d in order))
    found = build_weighting(spec)(gram(vectors_DP[order]), permuted)[0]
    torch.testing.assert_close(found, expected[order])


def test_each_group_is_treated_alone():
    grams = torch.cat([gram(gradients(5, seed=s)) for s in range(6)] + [gram(gradients(5).abs())])
    groups = tuple(f"layers.{g}" for g in range(7))
    spec = {"type": "pcgrad", "protect": ["a", "b"]}
    together = build_weighting(spec)(grams, Context(groups, NAMES[:5]))
    for row, group in enumerate(groups):
        alone = build_weighting(spec)(grams[row : row + 1], Context((group,), NAMES[:5]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-12, atol=1e-12)


def test_pairs_that_do_not_count_are_left_alone():
    vectors_DP = -gradients(3).abs()
    vectors_DP[2] *= -1  # opposes both
    counts_GDD = torch.ones(1, 3, 3, dtype=torch.bool)
    counts_GDD[0, 2, 1] = counts_GDD[0, 1, 2] = False
    protected_D = torch.tensor([True, True, False])
    identity = torch.eye(3, dtype=torch.float64)[None]
    part = give_way(identity, gram(vectors_DP), counts_GDD, protected_D)[0, 2] @ vectors_DP
    torch.testing.assert_close(part, nearest_in_cone(vectors_DP[2], vectors_DP[:1]))
    order_GDD = torch.tensor([[[1, 2], [0, 2], [0, 1]]])
    assert torch.equal(project(gram(vectors_DP), order_GDD, torch.zeros_like(counts_GDD)), identity)


def test_multipliers_are_exact_zeros_outside_the_active_set():
    correlation = torch.eye(2, dtype=torch.float64)[None]
    found = cone_multipliers(correlation, torch.tensor([[-0.5, 0.3]], dtype=torch.float64))
    assert found.tolist() == [[0.5, 0.0]]


def test_a_name_that_never_turns_up_is_refused_in_the_end():
    weighting = build_weighting({"type": "pcgrad", "protect": ["a", "mth"]})
    for step in range(PATIENCE - 1):
        weighting(gram(gradients(3)), Context(("g",), ("a", "code", "math"), step=step))
    with pytest.raises(StrategyError, match=r"protect lists 'mth', a domain that none of 50 steps held, .* 'math'\?"):
        weighting(gram(gradients(3)), Context(("g",), ("a", "code", "math"), step=PATIENCE))


def test_what_was_seen_survives_resumption():
    first = Protection(["a"])
    first.among(Context(("g",), ("a", "b")))
    resumed = Protection(["a"])
    resumed.load_state_dict(first.state_dict())
    for _ in range(2 * PATIENCE):
        resumed.among(Context(("g",), ("b", "c")))
    assert Protection().state_dict() == {}


def test_in_a_surgeon(toy):
    gradients_D = toy.domains(4, seed=3)
    spec = {"grouping": "global", "weighting": {"type": "pcgrad", "protect": ["alpha", "gamma"]}}
    found, record, surgeon = toy.run(gradients_D, spec)
    names = list(toy.SHAPES)
    vectors_DP = torch.stack([toy.flat(gradients_D[d], names) for d in record.domains])
    own = torch.tensor([d in ("alpha", "gamma") for d in record.domains])
    rest = toy.flat(found, names) - vectors_DP[own].sum(0)
    assert (vectors_DP[own] @ vectors_DP[~own].sum(0)).min() < 0
    assert (vectors_DP[own] @ rest).min() > -1e-9
    assert surgeon.strategy.name == "global x pcgrad(protect=alpha+gamma)"
    again = Surgeon(toy.Loss(toy.SHAPES), spec)
    again.load_state_dict(surgeon.state_dict())
    with pytest.raises(StrategyError, match="saved with the strategy"):
        Surgeon(toy.Loss(toy.SHAPES), "pcgrad").load_state_dict(surgeon.state_dict())
