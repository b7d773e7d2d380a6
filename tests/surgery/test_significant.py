"""Conflicts that exceed their noise: the estimate of the noise, the test made of it, and what is projected.

Many groups stand for many draws: every group holds gradients of its own, so one call is a whole experiment.
"""

import json
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from counterpoint.errors import StrategyError
from counterpoint.surgery import Context, Halves, Surgeon, build_weighting, cosines
from counterpoint.surgery.weightings.base import PATIENCE
from counterpoint.surgery.weightings.pcgrad import pcgrad
from counterpoint.surgery.weightings.significant import noise_squares, student_quantile, variances

NAMES = tuple("abcde")


def step_of(halves_GDHP: Tensor, counts: list[tuple[int, int]], domains=NAMES, step: int = 0) -> tuple[Tensor, Context]:
    """Gram and context of one step with the given halves of every domain's gradient."""
    num_groups, num_domains = halves_GDHP.shape[:2]
    vectors_GVP = halves_GDHP.flatten(1, 2)
    whole_GDP = halves_GDHP.sum(2)
    halves = Halves(vectors_GVP @ vectors_GVP.transpose(1, 2), torch.tensor(counts))
    groups = tuple(f"g{g}" for g in range(num_groups))
    context = Context(groups, tuple(domains[:num_domains]), 0, step, halves)
    return whole_GDP @ whole_GDP.transpose(1, 2), context


def sample(
    means_DP: Tensor, counts: list[tuple[int, int]], groups: int, seed: int, spectrum_P: Tensor | None = None
) -> Tensor:
    """Halves [G, D, 2, P]: sums of micro-batches of mean ``means_DP`` and noise of variance ``spectrum_P``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (groups, len(means_DP), 2, means_DP.shape[1])
    counts_D21 = torch.tensor(counts, dtype=torch.float64)[:, :, None]
    noise_GDHP = torch.randn(shape, generator=generator, dtype=torch.float64)
    if spectrum_P is not None:
        noise_GDHP = noise_GDHP * spectrum_P.sqrt()
    return counts_D21 * means_DP[:, None] + counts_D21.sqrt() * noise_GDHP


def significant(**options: object):
    return build_weighting({"type": "significant", **options})


# The variance


MEANS = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
SPECTRUM = torch.tensor([3.0, 1.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)


@pytest.mark.parametrize("counts", [[(1, 1), (1, 1)], [(2, 1), (3, 2)], [(2, 2), (1, 4)]])
def test_the_variance_is_estimated_without_bias(counts):
    draws = 20_000
    gram_GDD, context = step_of(sample(MEANS, counts, draws, 1, SPECTRUM), counts)
    squares_GDDC, valid_GDD = noise_squares(gram_GDD, context.halves)
    assert valid_GDD[:, 0, 1].all()
    scale_G = gram_GDD[:, 0, 0] * gram_GDD[:, 1, 1]
    estimates_G = (squares_GDDC[:, 0, 1, 0] + squares_GDDC[:, 1, 0, 0] - squares_GDDC[:, 0, 1, 1]) * scale_G
    (n_a, n_b), (mean_a, mean_b) = (sum(c) for c in counts), MEANS
    truth = n_a**2 * n_b * (mean_a**2 @ SPECTRUM) + n_b**2 * n_a * (mean_b**2 @ SPECTRUM)
    truth += n_a * n_b * (SPECTRUM @ SPECTRUM)
    assert gram_GDD[:, 0, 1].var().item() == pytest.approx(truth.item(), rel=0.05)
    error = 4 * estimates_G.std() / draws**0.5
    assert error < 0.1 * truth
    assert (estimates_G.mean() - truth).abs() < error


def test_the_difference_of_uneven_halves_is_another_estimate():
    """The control: without the factors of the contrast, uneven halves count the mean as noise."""
    counts = [(3, 1), (3, 1)]
    halves_GDHP = sample(MEANS[:1].repeat(2, 1), counts, 4000, 1, SPECTRUM)
    whole_GDP, difference_GDP = halves_GDHP.sum(2), halves_GDHP[:, :, 0] - halves_GDHP[:, :, 1]
    wrong = ((whole_GDP[:, 0] * difference_GDP[:, 1]).sum(-1) ** 2).mean()
    gram_GDD, context = step_of(halves_GDHP, counts)
    squares_GDDC, _ = noise_squares(gram_GDD, context.halves)
    right = (squares_GDDC[:, 0, 1, 0] * gram_GDD[:, 0, 0] * gram_GDD[:, 1, 1]).mean()
    assert wrong > 1.2 * right


def test_squares_equal_those_of_explicit_vectors():
    counts = [(2, 1), (1, 3), (4, 4)]
    halves_GDHP = sample(torch.zeros(3, 5, dtype=torch.float64), counts, 4, 7)
    gram_GDD, context = step_of(halves_GDHP, counts)
    squares_GDDC, valid_GDD = noise_squares(gram_GDD, context.halves)
    for g in range(4):
        for i in range(3):
            for j in range(3):
                (n1, n2), (m1, m2) = counts[i], counts[j]
                a, b = halves_GDHP[g, i].sum(0), halves_GDHP[g, j].sum(0)
                a_contrast = (n2 / n1) ** 0.5 * halves_GDHP[g, i, 0] - (n1 / n2) ** 0.5 * halves_GDHP[g, i, 1]
                b_contrast = (m2 / m1) ** 0.5 * halves_GDHP[g, j, 0] - (m1 / m2) ** 0.5 * halves_GDHP[g, j, 1]
                scale = (a @ a) * (b @ b)
                assert valid_GDD[g, i, j] == (i != j)
                if i != j:
                    expected = torch.stack([(a @ b_contrast) ** 2 / scale, (a_contrast @ b_contrast) ** 2 / scale])
                    torch.testing.assert_close(squares_GDDC[g, i, j], expected, rtol=1e-9, atol=1e-15)


def test_the_minimum_keeps_the_variance_from_falling_below_its_parts():
    squares = torch.tensor([[[0.0, 0.2], [0.3, 0.0]], [[0.0, 0.9], [0.9, 0.0]]], dtype=torch.float64).permute(1, 2, 0)
    assert variances(squares[None])[0, 0, 1].item() == pytest.approx(0.3)  # not 0.2 + 0.3 - 0.9
    squares[..., 1] = 0.1
    assert variances(squares[None])[0, 0, 1].item() == pytest.approx(0.2 + 0.3 - 0.1)


@pytest.mark.parametrize(
    ("level", "quantiles"),  # from printed tables
    [(0.05, {1: 6.314, 2: 2.920, 5: 2.015, 20: 1.725, 100: 1.660}), (0.01, {1: 31.82, 2: 6.965, 5: 3.365, 20: 2.528})],
)
def test_students_quantile(level, quantiles):
    freedom = torch.tensor([[float(degrees) for degrees in quantiles]], dtype=torch.float64)
    found = student_quantile(level, freedom)
    torch.testing.assert_close(found, torch.tensor([list(quantiles.values())]).double(), rtol=2e-4, atol=0)


# The test


FLAT = torch.ones(48, dtype=torch.float64)
STEEP = 1 / torch.arange(1, 49, dtype=torch.float64)


def projected_rate(means_DP: Tensor, spectrum_P: Tensor, decay: float, steps: range, level=0.05, plain=False) -> float:
    """The share of (group, step) in which the two domains' conflict is significant."""
    counts, draws = [(1, 1), (1, 1)], 400
    weighting = significant(level=level, decay=decay)
    rates = []
    for step in range(steps.stop):
        gram_GDD, context = step_of(sample(means_DP, counts, draws, step, spectrum_P), counts, step=step)
        weights_GD = weighting(gram_GDD, context)
        if step in steps:
            floor_G = plain_floor(weighting, context) if plain else weighting.noise_floor(context)[:, 0, 1]
            rates.append((cosines(gram_GDD)[:, 0, 1] < -floor_G).double().mean())
            assert plain or rates[-1] == (weights_GD != 1).any(1).double().mean()
    return torch.stack(rates).mean().item()


def plain_floor(weighting, context: Context) -> Tensor:
    """The obvious rule: the normal quantile of the unbiased estimate."""
    squares_GDDC, _ = weighting._averages.read(context)
    unbiased_G = squares_GDDC[:, 0, 1, 0] + squares_GDDC[:, 1, 0, 0] - squares_GDDC[:, 0, 1, 1]
    return NormalDist().inv_cdf(0.95) * unbiased_G.clamp(min=0).sqrt()


def crossed(size_a: float, size_b: float, cosine: float = 0.0) -> Tensor:
    """Two means of the given lengths at the given cosine, off the axes of the noise."""
    generator = torch.Generator().manual_seed(5)
    basis_PD, _ = torch.linalg.qr(torch.randn(48, 2, generator=generator, dtype=torch.float64))
    first, second = basis_PD.T
    return torch.stack([size_a * first, size_b * (cosine * first + (1 - cosine**2) ** 0.5 * second)])


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("sizes", [(0, 0), (10, 0), (10, 10)], ids=["noise", "one signal", "two signals"])
@pytest.mark.parametrize("spectrum_P", [FLAT, STEEP], ids=["flat", "steep"])
def test_false_alarms_stay_below_the_level(decay, sizes, spectrum_P):
    means_DP = crossed(*sizes) * (spectrum_P.sum() / 48) ** 0.5
    assert projected_rate(means_DP, spectrum_P, decay, range(30, 45)) < 0.06


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_false_alarms_stay_below_the_level_from_the_first_step(decay):
    for step in range(4):
        assert projected_rate(crossed(0, 0), FLAT, decay, range(step, step + 1)) < 0.05


def test_the_obvious_rule_raises_more_false_alarms():
    """The control: the unbiased estimate is so noisy that its normal quantile lets through three times as many."""
    assert projected_rate(crossed(0, 0), FLAT, 0.5, range(5, 15), plain=True) > 0.12
    assert projected_rate(crossed(0, 0), FLAT, 0.95, range(0, 3), plain=True) > 0.15


def test_other_levels():
    assert projected_rate(crossed(0, 0), FLAT, 0.95, range(30, 45), level=0.01) < 0.015
    assert 0.1 < projected_rate(crossed(0, 0), FLAT, 0.95, range(30, 45), level=0.2) < 0.22


def test_power():
    """Micro-batches with as much signal as noise: a cosine of -0.6 is found almost always, -0.3 mostly, +0.6 never."""
    rates = [projected_rate(crossed(7, 7, cosine), FLAT, 0.95, range(20, 30)) for cosine in (-0.6, -0.3, 0.6)]
    assert rates[0] > 0.95
    assert 0.5 < rates[1] < rates[0]
    assert rates[2] == 0


# The weights


def simplex(num_domains: int) -> Tensor:
    """Vectors [D, 8] of which each opposes all others."""
    means_DP = torch.eye(num_domains, 8, dtype=torch.float64)
    means_DP[:, :num_domains] -= 1.2 / num_domains
    return means_DP


def opposed(noise: float, seed: int = 0, groups: int = 3, num_domains: int = 2) -> tuple[Tensor, Context]:
    """One step of domains that oppose each other strongly, under some noise."""
    means_DP = simplex(num_domains)
    counts = [(1, 1)] * num_domains
    return step_of(sample(means_DP, counts, groups, seed, torch.full((8,), noise**2, dtype=torch.float64)), counts)


def test_without_noise_it_is_pcgrad():
    generator = torch.Generator().manual_seed(0)
    whole_GDP = simplex(4) + 0.02 * torch.randn(6, 4, 8, generator=generator, dtype=torch.float64)
    counts = [(1, 1), (2, 1), (3, 5), (1, 4)]
    parts_DH = torch.tensor(counts, dtype=torch.float64)
    parts_DH = parts_DH / parts_DH.sum(1, keepdim=True)
    gram_GDD, context = step_of(whole_GDP[:, :, None] * parts_DH[:, :, None], counts)
    expected = pcgrad(gram_GDD, context)
    assert not expected.eq(1).all()
    assert torch.equal(significant()(gram_GDD, context), expected)


def test_no_conflict_gives_exact_ones():
    gram_GDD, context = opposed(0.01)
    assert significant()(gram_GDD.abs(), context).eq(1).all()


def test_an_insignificant_conflict_gives_exact_ones():
    halves_GDHP = sample(torch.zeros(2, 8, dtype=torch.float64), [(1, 1)] * 2, 40, 3)
    gram_GDD, context = step_of(halves_GDHP, [(1, 1)] * 2)
    weights_GD = significant(level=1e-9)(gram_GDD, context)
    assert (gram_GDD < 0).any()
    assert weights_GD.eq(1).all()


def test_only_the_pairs_in_significant_conflict_are_projected():
    """a and b oppose each other at every draw; a and c do in this one, from noise."""
    means_DP = torch.zeros(3, 8, dtype=torch.float64)
    means_DP[0, 0], means_DP[1, 0], means_DP[1, 1] = 3.0, -3.0, 3.0
    counts = [(1, 1)] * 3
    halves_GDHP = sample(means_DP, counts, 1, 12, torch.full((8,), 0.3, dtype=torch.float64))
    weighting = significant(decay=0.9)
    for step in range(20):
        weighting(*step_of(sample(means_DP, counts, 1, 100 + step, torch.full((8,), 0.3)), counts, step=step))
    gram_GDD, context = step_of(halves_GDHP, counts, step=20)
    assert gram_GDD[0, 0, 2] < 0
    assert -weighting.noise_floor(context)[0, 0, 2] < cosines(gram_GDD)[0, 0, 2]
    weights_GD = weighting(gram_GDD, context)
    expected = pcgrad(gram_GDD[:, :2, :2], Context(context.groups, ("a", "b")))
    torch.testing.assert_close(weights_GD[:, :2], expected)
    assert weights_GD[0, 2] == 1
    assert pcgrad(gram_GDD, context)[0, 2] != 1


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_scale_does_not_matter(factor):
    one, other = significant(), significant()
    for seed in range(5):
        gram_GDD, context = opposed(0.3, seed)
        halves = Halves(context.halves.gram_GVV * factor, context.halves.counts_D2)
        scaled = Context(context.groups, context.domains, 0, 0, halves)
        weights_GD = one(gram_GDD, context)
        torch.testing.assert_close(other(gram_GDD * factor, scaled), weights_GD, rtol=1e-9, atol=1e-9)
    assert (weights_GD > 1).any()


def test_names_in_another_order_give_the_permuted_weights_equally_often():
    gram_GDD, context = opposed(0.05, num_domains=3, groups=1)
    order = [2, 0, 1]
    rows = torch.tensor([2 * d + h for d in order for h in (0, 1)])
    halves = Halves(context.halves.gram_GVV[:, rows][:, :, rows], context.halves.counts_D2[order])

    def results(permute: bool) -> set[tuple[float, ...]]:
        found = set()
        for step in range(60):
            if permute:
                now = Context(context.groups, tuple(NAMES[d] for d in order), 0, step, halves)
                weights_D = significant()(gram_GDD[:, order][:, :, order], now)[0]
                weights_D = weights_D[torch.tensor(order).argsort()]
            else:
                weights_D = significant()(gram_GDD, Context(context.groups, NAMES[:3], 0, step, context.halves))[0]
            found.add(tuple(round(w, 8) for w in weights_D.tolist()))
        return found

    assert len(results(False)) > 1
    assert results(False) == results(True)


def with_counts(entry: tuple[Tensor, Context], counts: list[tuple[int, int]]) -> tuple[Tensor, Context]:
    gram_GDD, context = entry
    kept_V = torch.tensor(counts).reshape(-1) > 0
    halves = Halves(context.halves.gram_GVV * (kept_V & kept_V.unsqueeze(1)), torch.tensor(counts))
    return gram_GDD, Context(context.groups, context.domains, context.seed, context.step, halves)


def test_no_evidence_no_surgery():
    entry = opposed(0.01)
    assert not significant()(*entry).eq(1).all()
    assert significant()(*with_counts(entry, [(2, 0), (1, 1)])).eq(1).all()
    assert significant()(*with_counts(entry, [(0, 0), (1, 1)])).eq(1).all()


def test_a_step_with_one_half_uses_what_is_known_and_adds_nothing():
    weighting, entry = significant(), opposed(0.01)
    weighting(*entry)
    before = weighting.state_dict()["averages"]
    assert not weighting(*with_counts(entry, [(2, 0), (1, 1)])).eq(1).all()
    assert weighting.state_dict()["averages"] == before


def test_absent_domains_keep_their_average():
    weighting = significant()
    counts = [(1, 1)] * 2
    for step in range(3):
        weighting(*step_of(sample(MEANS, counts, 2, step), counts, ("a", "c"), step))
    _, pair = step_of(sample(MEANS, counts, 2, 0), counts, ("a", "c"))
    floor = weighting.noise_floor(pair)
    weighting(*step_of(sample(MEANS, counts, 2, 9), counts, ("b", "c"), 3))
    assert torch.equal(weighting.noise_floor(pair), floor)
    _, unseen = step_of(sample(MEANS, counts, 2, 0), counts, ("a", "b"))
    assert weighting.noise_floor(unseen)[:, 0, 1].isinf().all()


def test_a_group_without_gradient_changes_nothing():
    weighting = significant()
    gram_GDD, context = opposed(0.01)
    gram_GDD[1], context.halves.gram_GVV[1] = 0, 0
    weights_GD = weighting(gram_GDD, context)
    assert weights_GD[1].eq(1).all()
    assert weights_GD.isfinite().all()
    assert not weights_GD[0].eq(1).all()


def test_protected_domains_stay_and_the_others_give_way_to_significant_conflicts():
    gram_GDD, context = opposed(0.01)
    weights_GD = significant(protect=["a"])(gram_GDD, context)
    assert weights_GD[:, 1].eq(1).all()  # b is not subtracted from a
    inner_G = gram_GDD[:, 0, 1] + (weights_GD[:, 0] - 1) * gram_GDD[:, 0, 0]
    torch.testing.assert_close(inner_G, torch.zeros_like(inner_G), rtol=0, atol=1e-9)
    noisy = step_of(sample(torch.zeros(2, 8, dtype=torch.float64), [(1, 1)] * 2, 40, 3), [(1, 1)] * 2)
    assert significant(level=1e-9, protect=["a"])(*noisy).eq(1).all()


@pytest.mark.parametrize("through", [lambda state: state, lambda state: json.loads(json.dumps(state))])
def test_resumed_equals_uninterrupted(through):
    def entry(step: int) -> tuple[Tensor, Context]:
        domains = ("a", "b", "c") if step % 2 else ("b", "d", "c")
        means_DP = torch.eye(3, 8, dtype=torch.float64) - 0.3
        return step_of(sample(means_DP, [(2, 1)] * 3, 4, step), [(2, 1)] * 3, domains, step)

    options = {"decay": 0.7, "level": 0.2, "protect": ["a"]}
    whole, first, second = significant(**options), significant(**options), significant(**options)
    expected = [whole(*entry(step)) for step in range(12)]
    for step in range(5):
        first(*entry(step))
    second.load_state_dict(through(first.state_dict()))
    found = [second(*entry(step)) for step in range(5, 12)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected[5:], strict=True))
    assert second.state_dict() == whole.state_dict()
    forgetful = significant(**options)
    assert not all(torch.equal(forgetful(*entry(s)), expected[s]) for s in range(5, 12))


def test_twins_agree_and_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    one, other = significant(), significant()
    for seed in range(4):
        entry = opposed(0.3, seed, num_domains=4)
        assert torch.equal(one(*entry), other(*entry))
    assert torch.equal(before, torch.get_rng_state())


def test_without_halves_it_says_what_to_do():
    with pytest.raises(
        StrategyError, match=r"needs the gradients in two halves, and the context holds none: use it in"
    ):
        significant()(torch.eye(2, dtype=torch.float64)[None], Context(("g",), ("a", "b")))


def test_domains_never_collected_twice_are_refused_in_the_end():
    weighting, entry = significant(), with_counts(opposed(0.01), [(1, 0), (1, 0)])
    for _ in range(PATIENCE - 1):
        assert weighting(*entry).eq(1).all()
    with pytest.raises(StrategyError, match=r"In none of 50 steps were two domains collected at least twice each"):
        weighting(*entry)


# In a Surgeon


def micro_batches(toy, counts: dict[str, int], seed: int) -> list[tuple[str, dict[str, Tensor]]]:
    return [
        (domain, toy.random_gradients(toy.SHAPES, 1000 * seed + 10 * d + k))
        for d, (domain, number) in enumerate(counts.items())
        for k in range(number)
    ]


def test_the_surgeon_files_halves(toy):
    model = toy.Loss(toy.SHAPES)
    surgeon = Surgeon(model, {"grouping": "global", "weighting": "significant"})
    batches = micro_batches(toy, {"alpha": 3, "beta": 2}, 0)
    for domain, gradients in batches:
        model.backward(gradients)
        surgeon.collect(domain)
    record = surgeon.combine()
    a1, a2, a3, b1, b2 = (toy.flat(gradients, list(toy.SHAPES)) for _, gradients in batches)
    halves_GDHP = torch.stack([torch.stack([a1 + a3, a2]), torch.stack([b1, b2])])[None]
    gram_GDD, context = step_of(halves_GDHP, [(2, 1), (1, 1)], ("alpha", "beta"))
    torch.testing.assert_close(record.gram_GDD, gram_GDD)
    expected = significant()
    expected(gram_GDD, context)
    found = torch.tensor(surgeon.state_dict()["weighting"]["averages"]["sums"])
    torch.testing.assert_close(found, torch.tensor(expected.state_dict()["averages"]["sums"]))


def test_a_resumed_surgeon_equals_one_that_went_on(toy):
    model = toy.Loss(toy.SHAPES)
    spec = {"grouping": "tensor", "weighting": {"type": "significant", "level": 0.3, "decay": 0.5}}

    def run(surgeon: Surgeon, steps: range) -> list[Tensor]:
        weights = []
        for step in steps:
            for domain, gradients in micro_batches(toy, {"alpha": 2, "beta": 3, "delta": 1 + step % 2}, step):
                model.backward(gradients)
                surgeon.collect(domain)
            weights.append(surgeon.combine().weights_GD)
            model.zero_grad()
        return weights

    expected = run(Surgeon(model, spec), range(10))
    first, second = Surgeon(model, spec), Surgeon(model, spec)
    run(first, range(4))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found = run(second, range(4, 10))
    assert any(not weights.eq(1).all() for weights in found)
    assert all(torch.equal(a, b) for a, b in zip(found, expected[4:], strict=True))
