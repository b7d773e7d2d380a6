"""Lanczos against full eigenvalue decompositions, and what a planted subspace carries."""

import pytest
import torch

from counterpoint.diagnosis._curvature import lanczos


def orthogonal(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q


def operator(values, seed=0):
    q = orthogonal(len(values), seed)
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T, q


def test_a_full_space_gives_all_eigenvalues():
    matrix, _ = operator([5.0, 3.0, 1.0, 0.5, -0.25, -2.0, -7.0])
    found = lanczos(lambda v: matrix @ v, 7, 20)
    expected = torch.tensor([5.0, 3.0, 1.0, 0.5, -0.25, -2.0, -7.0], dtype=torch.float64)
    torch.testing.assert_close(found.values_K, expected, rtol=1e-10, atol=1e-10)
    assert found.residuals_K.max() < 1e-8
    gram = found.vectors_KN @ found.vectors_KN.T
    torch.testing.assert_close(gram, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-10)


def test_eigenvalues_that_occur_often_are_found_as_often():
    matrix, _ = operator([4.0, 4.0, 4.0, -1.0, -1.0, 0.0, 0.0, 0.0])
    found = lanczos(lambda v: matrix @ v, 8, 8).values_K
    torch.testing.assert_close(found, torch.tensor([4.0] * 3 + [0.0] * 3 + [-1.0] * 2).double(), rtol=0, atol=1e-10)


def test_both_ends_come_first_and_residuals_bound_the_error():
    generator = torch.Generator().manual_seed(0)
    values = [30.0, 20.0, -25.0, *torch.rand(197, generator=generator).sub(0.5).tolist()]
    matrix, q = operator(values, seed=3)
    found = lanczos(lambda v: matrix @ v, 200, 15, seed=1)
    assert found.values_K[[0, 1, -1]].tolist() == pytest.approx([30.0, 20.0, -25.0], rel=1e-8)
    exact = torch.tensor(values, dtype=torch.float64)
    nearest = (found.values_K.unsqueeze(1) - exact).abs().min(1).values
    assert (nearest <= found.residuals_K + 1e-9).all()
    assert abs(float(found.vectors_KN[0] @ q[:, 0])) == pytest.approx(1, abs=1e-8)


def test_the_start_is_seeded_and_private():
    matrix, _ = operator([3.0, 2.0, 1.0, 0.0])
    state = torch.get_rng_state()
    one, two = (lanczos(lambda v: matrix @ v, 4, 2, seed=5) for _ in range(2))
    assert torch.equal(one.values_K, two.values_K)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(one.values_K, lanczos(lambda v: matrix @ v, 4, 2, seed=6).values_K)


def test_an_operator_without_curvature_has_only_zeros():
    found = lanczos(torch.zeros_like, 6, 4)
    assert found.values_K.tolist() == [0.0] * 4
    assert found.residuals_K.tolist() == [0.0] * 4


def test_vectors_are_on_the_disk_and_their_file_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matrix, _ = operator([3.0, 2.0, 1.0, 0.0])
    found = lanczos(lambda v: matrix @ v, 4, 4)
    assert list(tmp_path.iterdir()) == []
    again = found.vectors_KN @ matrix @ found.vectors_KN.T
    torch.testing.assert_close(again.diagonal(), found.values_K, rtol=0, atol=1e-10)


def test_a_planted_subspace_carries_all():
    size, rank = 400, 8
    values = [10.0 + i for i in range(rank)] + [0.0] * (size - rank)
    matrix, _ = operator(values, seed=4)
    generator = torch.Generator().manual_seed(0)
    edit = torch.randn(size, generator=generator, dtype=torch.float64)
    product = matrix @ edit
    total = 0.5 * float(edit @ product)
    found = lanczos(lambda v: matrix @ v, size, rank + 1)
    parts = 0.5 * (found.vectors_KN[:rank] @ edit) * (found.vectors_KN[:rank] @ product)
    assert float(parts.sum()) / total == pytest.approx(1, abs=1e-9)
