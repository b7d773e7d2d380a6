"""Parts of damage: they add up, they are what brute force finds, and random parts are what chance gives."""

import pytest
import torch

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis._curvature import Piece, SumLoss, along, losses
from counterpoint.diagnosis._damage_parts import (
    OnNeurons,
    by_module,
    damage_at,
    module_parts,
    per_unit,
    random_edit_damage,
    reach_of,
    route_part,
    subspace_of,
)

LAYER = "model.layers.{}.mlp.{}_proj.weight"
SHAPES = {
    "model.embed_tokens.weight": (3, 2),
    LAYER.format(0, "gate"): (4, 2),
    LAYER.format(0, "up"): (4, 2),
    LAYER.format(0, "down"): (2, 4),
    "model.layers.1.self_attn.q_proj.weight": (2, 2),
    LAYER.format(1, "down"): (2, 4),
}
ANATOMY = Anatomy.of(SHAPES)
SIZE = sum(a * b for a, b in SHAPES.values())
SHARED = {0: torch.tensor([True, False, False, True]), 1: torch.tensor([False, True, False, False])}


def tensors(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def flat(direction):
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()} | dict(direction)
    return torch.cat([zeros[name].flatten() for name in SHAPES])


def symmetric(seed, size=SIZE):
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a + a.T


def quadratic(matrices, slopes=None, cubic=0.0):
    params = {name: value.requires_grad_() for name, value in tensors(0).items()}
    slopes = slopes or [torch.zeros(SIZE, dtype=torch.float64)] * len(matrices)
    origin = flat(params).detach()

    def piece(a, c):
        def value():
            x = flat(params) - origin
            return c @ x + 0.5 * x @ a @ x + cubic * (x**3).sum()

        return value

    pieces = tuple(Piece(p, piece(a, c)) for p, (a, c) in enumerate(zip(matrices, slopes, strict=True)))
    return SumLoss(params, pieces, torch.tensor([2.0 + p for p in range(len(matrices))], dtype=torch.float64))


@pytest.fixture(scope="module")
def case():
    matrices = [symmetric(s) for s in range(5)]
    slopes = [torch.randn(SIZE, generator=torch.Generator().manual_seed(50 + s)).double() for s in range(5)]
    loss = quadratic(matrices, slopes)
    edit = tensors(9)
    hessian = sum(matrices) / loss.units_P.sum()
    gradient = sum(slopes) / loss.units_P.sum()
    modules = ANATOMY.by_module(loss.params)
    whole = along(loss, {"edit": edit}, by_module(edit, modules))
    return loss, edit, hessian, gradient, modules, whole


def test_modules_add_up_exactly(case):
    loss, edit, hessian, gradient, modules, whole = case
    d = flat(edit)
    rows = module_parts(whole, edit, loss, modules)
    assert {row.module for row in rows} == {"embedding", "layers.0.mlp", "layers.1.attention", "layers.1.mlp"}
    assert sum(row.first.value for row in rows) == pytest.approx(float(gradient @ d), rel=1e-12)
    assert sum(row.second.value for row in rows) == pytest.approx(float(0.5 * d @ hessian @ d), rel=1e-12)
    assert sum(row.edit_share for row in rows) == pytest.approx(1, rel=1e-12)
    assert sum(row.size_share for row in rows) == pytest.approx(1, rel=1e-12)
    assert all(row.first.low <= row.first.value <= row.first.high for row in rows)
    assert [abs(row.second.value) for row in rows] == sorted((abs(row.second.value) for row in rows), reverse=True)


def brute_mask():
    """The weights of the shared neurons, written out."""
    mask = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    for name in (LAYER.format(0, "gate"), LAYER.format(0, "up")):
        mask[name][[0, 3], :] = True
    mask[LAYER.format(0, "down")][:, [0, 3]] = True
    mask[LAYER.format(1, "down")][:, 1] = True
    return flat({name: value.double() for name, value in mask.items()})


def test_the_shared_route_against_a_mask_written_out(case):
    loss, edit, hessian, gradient, _, whole = case
    torch.testing.assert_close(flat(OnNeurons(edit, SHARED, ANATOMY)), flat(edit) * brute_mask())
    found = route_part(loss, edit, SHARED, whole, "qa", ANATOMY, draws=20)
    d = flat(edit)
    on = d * brute_mask()
    off = d - on
    assert (found.neurons, found.all_neurons) == (3, 8)
    assert found.edit_share == pytest.approx(float(on @ on / (d @ d)))
    for estimate, expected in (
        (found.first_on, gradient @ on),
        (found.first_off, gradient @ off),
        (found.second_on, 0.5 * on @ hessian @ on),
        (found.second_off, 0.5 * off @ hessian @ off),
        (found.cross, on @ hessian @ off),
    ):
        assert estimate.value == pytest.approx(float(expected), rel=1e-10)
    together = found.second_on.value + found.cross.value + found.second_off.value
    assert together == pytest.approx(float(0.5 * d @ hessian @ d), rel=1e-12)
    assert found.random_second.low <= found.random_second.value <= found.random_second.high


def test_random_neurons_carry_as_much_as_shared_ones_where_all_are_alike():
    loss = quadratic([torch.eye(SIZE, dtype=torch.float64)])
    edit = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    whole = along(loss, {"edit": edit})
    found = route_part(loss, edit, SHARED, whole, "qa", ANATOMY, draws=4)
    same = found.random_second
    assert same.value == pytest.approx(found.second_on.value) == pytest.approx(same.low) == pytest.approx(same.high)
    assert found.random_edit_share.value == pytest.approx(found.edit_share)


def test_a_quadratic_is_predicted_at_every_scale(case):
    loss, edit, _, _, _, whole = case
    measured = damage_at(loss, edit, [0.1, 0.5, 1.0, 1.5], losses(loss))
    found = reach_of(measured, whole.first["edit"].sum(1), 0.5 * whole.second["edit"].sum(1), loss.units_P)
    assert found.largest_scale == 1.5
    assert all(point.error < 1e-10 for point in found.points)


def test_a_cubic_is_predicted_up_to_where_its_third_order_weighs_a_fifth():
    loss = quadratic([torch.eye(SIZE, dtype=torch.float64)] * 3, cubic=0.1)
    edit = {name: torch.ones(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    whole = along(loss, {"edit": edit})
    measured = damage_at(loss, edit, [0.5, 1.0, 1.2, 1.3, 2.0], losses(loss))
    found = reach_of(measured, whole.first["edit"].sum(1), 0.5 * whole.second["edit"].sum(1), loss.units_P)
    # measured 1/2 s^2 + 0.1 s^3: the error 0.2 s / (1 + 0.2 s) passes 0.2 at s = 1.25
    for point in found.points:
        assert point.error == pytest.approx(0.2 * point.scale / (1 + 0.2 * point.scale), rel=1e-9)
    assert found.largest_scale == 1.2
    zeros = torch.zeros(3, dtype=torch.float64)
    assert reach_of(measured, zeros, zeros, loss.units_P, 0.2).largest_scale == 0


def test_orders_that_cancel_are_judged_by_their_size():
    units, ones = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    (point,) = reach_of({1.0: 0.02 * ones}, -1.0 * ones, 1.01 * ones, units).points
    assert point.error == pytest.approx(0.01 / 1.01)
    (nothing,) = reach_of({1.0: 0 * ones}, 0 * ones, 0 * ones, units).points
    assert nothing.error == 0
    (missed,) = reach_of({1.0: 0 * ones}, ones, 0 * ones, units).points
    assert missed.error == 1


def test_random_edits_do_what_the_mean_curvature_does():
    loss = quadratic([torch.eye(SIZE, dtype=torch.float64)])
    edit = tensors(9)
    d = flat(edit)
    found = random_edit_damage(loss, edit, ANATOMY.by_module(loss.params), losses(loss), draws=3)
    expected = float(0.5 * d @ d) / 2
    assert found.low == pytest.approx(expected, rel=1e-5) == pytest.approx(found.high, rel=1e-5)


def conflict(rank=3, prompts=6):
    """A quadratic whose curvature lies in ``rank`` directions, and an edit all over the place."""
    q = torch.linalg.qr(symmetric(77)).Q[:, :rank]
    return quadratic([q @ torch.diag(torch.tensor([9.0, 5.0, 3.0]).double()) @ q.T] * prompts)


def subspace(loss, edit, **options):
    modules = ANATOMY.by_module(loss.params)
    whole = along(loss, {"edit": edit}, by_module(edit, modules))
    return subspace_of(loss, edit, **options), whole


def test_a_planted_conflict_subspace_is_found_and_carries_everything():
    loss, edit = conflict(), tensors(9)
    found, whole = subspace(loss, edit, iterations=8, top=3)
    scale = 6 / float(loss.units_P.sum())
    assert [d.eigenvalue for d in found.directions] == pytest.approx([9 * scale, 5 * scale, 3 * scale], rel=1e-9)
    assert all(direction.residual < 1e-8 for direction in found.directions)
    assert found.share.value == pytest.approx(1, abs=1e-9)
    assert found.other_half_share.value == pytest.approx(1, abs=1e-9), "all prompts have one subspace"
    assert found.random_share == pytest.approx(3 / SIZE)
    parts = sum(direction.part.value for direction in found.directions)
    assert parts == pytest.approx(0.5 * float(whole.second["edit"].sum() / loss.units_P.sum()), rel=1e-9)


def test_what_random_directions_carry_is_their_mean():
    u = flat(tensors(4))
    loss, edit = quadratic([torch.outer(u, u)] * 4), tensors(9)
    found, _ = subspace(loss, edit, iterations=3, top=1)
    assert found.share.value == pytest.approx(1, abs=1e-9)
    hessian, d = 4 * torch.outer(u, u) / loss.units_P.sum(), flat(edit)
    draws_RN = torch.randn(20_000, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws_RN = draws_RN / draws_RN.norm(dim=1, keepdim=True)
    carried_R = (draws_RN @ d) * (draws_RN @ hessian @ d) / (d @ hessian @ d)
    assert float(carried_R.mean()) == pytest.approx(found.random_share, abs=4 * float(carried_R.std()) / 20_000**0.5)


def test_directions_that_fit_one_half_carry_nothing_of_the_other():
    u = torch.linalg.qr(symmetric(77)).Q
    matrices = [torch.outer(u[:, p % 2], u[:, p % 2]) for p in range(6)]
    found, _ = subspace(quadratic(matrices), tensors(9), iterations=6, top=1)
    assert found.other_half_share.value == pytest.approx(0, abs=1e-9)


def test_intervals_are_over_prompts():
    values, units = torch.tensor([1.0, 3.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 2.0, 2.0])
    found = per_unit(values, units)
    assert found.value == pytest.approx(2.0)
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0
    same = per_unit(2 * units, units)
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)
