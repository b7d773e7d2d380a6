"""First and second derivatives along directions: exact on quadratics, against brute force on a small network."""

import pytest
import torch

from counterpoint.diagnosis._curvature import (
    Piece,
    SumLoss,
    along,
    check_deterministic,
    displaced,
    hessian_product,
    inner,
    losses,
)
from counterpoint.errors import UnsupportedError
from counterpoint.models import is_out_of_memory

SHAPES = {"a": (3,), "b": (2, 2), "c": (1,)}


def tensors(seed, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def flat(direction):
    return torch.cat([direction[name].flatten() for name in direction])


def quadratic(num_prompts=4, seed=0, pieces_each=2):
    """``L_p = c_p.x + 1/2 x'A_p x`` with A_p symmetric and not definite; also all A_p and c_p."""
    params = {name: value.requires_grad_() for name, value in tensors(seed).items()}
    size = sum(p.numel() for p in params.values())
    generator = torch.Generator().manual_seed(seed + 100)
    matrices, slopes, pieces = [], [], []
    for prompt in range(num_prompts):
        for _ in range(pieces_each):
            a = torch.randn(size, size, generator=generator, dtype=torch.float64)
            c = torch.randn(size, generator=generator, dtype=torch.float64)
            a = a + a.T
            matrices.append((prompt, a))
            slopes.append((prompt, c))
            pieces.append(Piece(prompt, lambda a=a, c=c: c @ flat(params) + 0.5 * flat(params) @ a @ flat(params)))
    units = torch.arange(1.0, num_prompts + 1, dtype=torch.float64)
    return SumLoss(params, tuple(pieces), units), matrices, slopes


def test_every_term_is_exact_on_a_quadratic():
    loss, matrices, slopes = quadratic()
    edit = tensors(7)
    x, d = flat(loss.params).detach(), flat(edit)
    found = along(loss, {"edit": edit})
    for prompt in range(4):
        a = sum(m for p, m in matrices if p == prompt)
        c = sum(s for p, s in slopes if p == prompt)
        assert found.first["edit"][prompt].item() == pytest.approx(float((c + a @ x) @ d), rel=1e-12)
        assert found.second["edit"][prompt].item() == pytest.approx(float(d @ a @ d), rel=1e-12)
    whole = sum(m for _, m in matrices) @ d / loss.units_P.sum()
    torch.testing.assert_close(flat(hessian_product(loss, edit)), whole, rtol=1e-12, atol=1e-12)
    before = losses(loss)
    with displaced(loss.params, edit):
        measured = losses(loss) - before
    predicted = found.first["edit"][:, 0] + 0.5 * found.second["edit"][:, 0]
    torch.testing.assert_close(predicted, measured, rtol=1e-11, atol=1e-11)


def test_a_direction_may_lack_names():
    loss, matrices, _ = quadratic()
    part = {"b": tensors(3)["b"]}
    d = flat({name: part.get(name, torch.zeros_like(p)) for name, p in loss.params.items()})
    expected = sum(float(d @ m @ d) for _, m in matrices)
    assert along(loss, {"part": part}).second["part"].sum().item() == pytest.approx(expected, rel=1e-12)


class Network(torch.nn.Module):
    """Fewer than 200 parameters, tied weights, nothing linear in all of them."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.nn.Parameter(torch.randn(6, 5, generator=generator, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x):
        return ((torch.tanh(x @ self.first.T) * self.second) @ self.first).exp().sum().log()


def network_loss():
    model = Network()
    inputs = torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pieces = tuple(Piece(p, lambda x=x: model(x)) for p, x in enumerate(inputs))
    return SumLoss(dict(model.named_parameters()), pieces, torch.full((5,), 2.0, dtype=torch.float64))


def test_curvature_against_the_whole_hessian_and_finite_differences():
    loss = network_loss()
    shapes = {name: p.shape for name, p in loss.params.items()}
    edit = {n: torch.randn(s, generator=torch.Generator().manual_seed(5)).double() for n, s in shapes.items()}
    sizes = [p.numel() for p in loss.params.values()]

    def total(vector):
        parts = dict(zip(shapes, vector.split(sizes), strict=True))
        first, second = parts["first"].view(6, 5), parts["second"]
        inputs = torch.randn(5, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return sum(((torch.tanh(x @ first.T) * second) @ first).exp().sum().log() for x in inputs)

    hessian = torch.autograd.functional.hessian(total, flat(loss.params).detach())
    d = flat(edit)
    found = along(loss, {"edit": edit})
    assert found.second["edit"].sum().item() == pytest.approx(float(d @ hessian @ d), rel=1e-10)
    step, values = 1e-4, {}
    for scale in (-step, 0.0, step):
        with displaced(loss.params, edit, scale):
            values[scale] = losses(loss)
    slope = (values[step] - values[-step]) / (2 * step)
    bend = (values[step] - 2 * values[0.0] + values[-step]) / step**2
    torch.testing.assert_close(found.first["edit"][:, 0], slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.second["edit"][:, 0], bend, rtol=1e-4, atol=1e-4)


def test_a_loss_without_curvature_has_none():
    params = {name: value.requires_grad_() for name, value in tensors(0).items()}
    loss = SumLoss(params, (Piece(0, lambda: params["a"].sum() + 3 * params["b"].sum()),), torch.ones(1))
    edit = tensors(1)
    found = along(loss, {"edit": edit})
    expected = float(edit["a"].sum() + 3 * edit["b"].sum())
    assert found.first["edit"].item() == pytest.approx(expected, rel=1e-12)
    assert found.second["edit"].item() == 0
    assert all((value == 0).all() for value in hessian_product(loss, edit).values())


def test_a_loss_linear_in_some_parameters_keeps_the_curvature_of_the_others():
    params = {name: value.requires_grad_() for name, value in tensors(0).items()}
    loss = SumLoss(params, (Piece(0, lambda: params["a"].sum() + (params["c"] ** 2).sum()),), torch.ones(1))
    edit = tensors(1)
    assert along(loss, {"edit": edit}).second["edit"].item() == pytest.approx(2 * float(edit["c"] ** 2), rel=1e-12)


def test_a_loss_with_dropout_is_refused():
    torch.manual_seed(0)
    params = {"a": torch.ones(50, dtype=torch.float64, requires_grad=True)}

    def noisy():
        return torch.nn.functional.dropout(params["a"], 0.1).sum()

    quiet = SumLoss(params, (Piece(0, lambda: (params["a"] ** 2).sum()),), torch.ones(1))
    check_deterministic(quiet)
    with pytest.raises(
        UnsupportedError, match=r"not deterministic: its (?:loss|gradient) changed by .*model\.eval\(\).*dropout"
    ):
        check_deterministic(SumLoss(params, (Piece(0, noisy),), torch.ones(1)))


def test_a_gradient_with_noise_under_an_exact_loss_is_refused():
    params = {"a": torch.ones(50, dtype=torch.float64, requires_grad=True)}

    class Noisy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.rand(50, dtype=torch.float64)

    with pytest.raises(UnsupportedError, match="its gradient changed"):
        check_deterministic(SumLoss(params, (Piece(0, lambda: Noisy.apply(params["a"])),), torch.ones(1)))


def test_a_displacement_is_undone_to_the_bit():
    params = {name: torch.nn.Parameter(value.float()) for name, value in tensors(0).items()}
    before = {name: value.detach().clone() for name, value in params.items()}
    edit = {name: value.float() * 1e3 for name, value in tensors(1).items()}

    def fails_halfway():
        with displaced(params, edit, 0.3):
            assert not torch.equal(params["a"], before["a"])
            raise KeyError

    with pytest.raises(KeyError):
        fails_halfway()
    assert all(torch.equal(params[name], before[name]) for name in params)


def test_an_edit_may_be_made_tensor_by_tensor():
    params = {name: torch.nn.Parameter(value.float()) for name, value in tensors(0).items()}
    before = {name: value.detach().clone() for name, value in params.items()}

    def edit():
        for done, name in enumerate(params):
            assert sum(not torch.equal(params[n], before[n]) for n in params) == done, "each is used before the next"
            yield name, torch.ones_like(params[name])

    with displaced(params, edit(), 2.0):
        assert all(torch.equal(params[name], before[name] + 2) for name in params)
    assert all(torch.equal(params[name], before[name]) for name in params)


def test_halves_share_no_prompt_and_count_their_own_units():
    loss, _, _ = quadratic(num_prompts=5)
    halves = loss.half(0), loss.half(1)
    assert [{piece.prompt for piece in half.pieces} for half in halves] == [{0, 2, 4}, {1, 3}]
    assert [half.units_P.tolist() for half in halves] == [[1, 0, 3, 0, 5], [0, 2, 0, 4, 0]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_errors_are_known_by_their_wording(error, expected):
    assert is_out_of_memory(error) is expected


def test_inner_products_run_over_shared_names():
    first, second = tensors(0), {"c": torch.tensor([2.0], dtype=torch.float64)}
    assert inner(first, second).item() == pytest.approx(2 * first["c"].item())
    assert inner({}, second).item() == 0
