"""What is read off Grams, against the same computed from vectors; and the kernels that make Grams."""

import pytest
import torch

from counterpoint.surgery import Surgeon, _kernels, conflict_rate, conflicts, cosines, removed_share
from counterpoint.surgery._kernels import in_threads, pair_products, pairs, spans, weighted_sum_

GROUPS, DOMAINS, SIZE = 3, 4, 10


@pytest.fixture
def vectors_GDP() -> torch.Tensor:
    return torch.randn(GROUPS, DOMAINS, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_cosines(vectors_GDP):
    gram_GDD = vectors_GDP @ vectors_GDP.mT
    expected = torch.nn.functional.cosine_similarity(vectors_GDP[:, :, None], vectors_GDP[:, None], dim=-1)
    torch.testing.assert_close(cosines(gram_GDD), expected)


def test_cosine_with_a_zero_gradient_is_zero(vectors_GDP):
    vectors_GDP[0, 1] = 0
    found = cosines(vectors_GDP @ vectors_GDP.mT)
    assert found.isfinite().all()
    assert found[0, 1].eq(0).all()


def test_conflict_rate():
    gram_GDD = torch.tensor([[[1.0, -0.1], [-0.1, 1.0]], [[1.0, 0.1], [0.1, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    assert conflict_rate(gram_GDD) == pytest.approx(1 / 3)
    assert conflicts(gram_GDD).sum() == 2
    assert conflict_rate(gram_GDD[:, :1, :1]) == 0.0


def test_removed_share(vectors_GDP):
    weights_GD = torch.rand(GROUPS, DOMAINS, dtype=torch.float64)
    plain = vectors_GDP.sum(1)
    combined = (weights_GD.unsqueeze(-1) * vectors_GDP).sum(1)
    expected = ((plain - combined).norm() / plain.norm()).item()
    assert removed_share(vectors_GDP @ vectors_GDP.mT, weights_GD) == pytest.approx(expected, rel=1e-12)


def test_domains_without_a_gradient_are_left_out_of_the_conflict_rate():
    gram_GDD = torch.tensor([[[1.0, -0.5, 0], [-0.5, 1, 0], [0, 0, 0]], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]])
    assert conflict_rate(gram_GDD) == 0.5
    assert conflict_rate(torch.zeros(2, 3, 3)) == 0.0


def test_nothing_is_removed_by_ones(vectors_GDP):
    gram_GDD = vectors_GDP @ vectors_GDP.mT
    assert removed_share(gram_GDD, torch.ones(GROUPS, DOMAINS, dtype=torch.float64)) == 0.0
    assert removed_share(gram_GDD.fill_(float("nan")), torch.ones(GROUPS, DOMAINS, dtype=torch.float64)) == 0.0
    assert removed_share(torch.zeros(1, 2, 2), torch.zeros(1, 2)) == 0.0


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
@pytest.mark.parametrize("pieces", [1, 4])
def test_products_do_not_depend_on_the_chunk(chunk, pieces):
    flats = list(torch.randn(3, 400, generator=torch.Generator().manual_seed(0)))
    exact = torch.stack(flats).double().view(3, pieces, -1).transpose(0, 1)
    upper = torch.stack([(exact @ exact.mT)[:, i, j] for i, j in pairs(3)], dim=1)
    torch.testing.assert_close(pair_products(flats, pieces, chunk), upper, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_sums_do_not_depend_on_the_chunk(chunk):
    flats = list(torch.randn(3, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    weights_PD = torch.rand(4, 3, dtype=torch.float64)
    exact = torch.einsum("pd,dpn->pn", weights_PD, torch.stack(flats).view(3, 4, 100)).reshape(-1)
    weighted_sum_(flats, weights_PD.tolist(), chunk)
    torch.testing.assert_close(flats[0], exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradients_are_multiplied_in_float32(dtype):
    ones = torch.ones(60_000, dtype=dtype)
    tiny = torch.full_like(ones, 2**-7)
    products = pair_products([ones, tiny], 1)[0]
    # In bfloat16 a running sum of ones stops at 256; in float16 60 000 of them round and overflow soon after.
    assert products.tolist() == [60_000, 468.75, 60_000 * 2**-14]


def test_low_precision_sums_are_rounded_once():
    parts = torch.tensor([[1.0], [2**-8], [2**-8]]).bfloat16()
    flats = list(parts.clone())
    weighted_sum_(flats, [[1.0, 1.0, 1.0]])
    assert flats[0].item() == 1 + 2**-7
    # The control: rounding after each addition loses both small terms.
    assert (parts[0] + parts[1] + parts[2]).item() == 1.0


def test_empty_parameters_have_zero_products():
    assert pair_products([torch.empty(0), torch.empty(0)], 1).tolist() == [[0, 0, 0]]


def test_thread_count_is_put_back():
    def fail(item):
        raise RuntimeError(item)

    before = torch.get_num_threads()
    for wanted in (1, 2):
        with pytest.raises(RuntimeError, match="0"):
            in_threads(fail, range(4), wanted)
        assert torch.get_num_threads() == before
    assert in_threads(lambda item: item * 2, range(5), 2) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("longest", [1, 3, 5, 100])
def test_spans_cover_every_element_once_and_stay_inside_their_unit(longest):
    sizes, counts = [12, 7, 8, 0], [3, 1, 4, 1]
    found = spans(sizes, counts, longest)
    for parameter, size in enumerate(sizes):
        mine = [span for span in found if span.parameter == parameter]
        assert [i for span in mine for i in range(span.low, span.high)] == list(range(size))
    assert all(0 < span.high - span.low <= longest for span in found)
    sizes_U, starts_U = [4, 4, 4, 7, 2, 2, 2, 2], [0, 4, 8, 0, 0, 2, 4, 6]
    assert sorted({span.unit for span in found}) == list(range(8))
    for span in found:
        assert starts_U[span.unit] <= span.low < span.high <= starts_U[span.unit] + sizes_U[span.unit]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(num_threads, monkeypatch):
    monkeypatch.setattr(_kernels, "CPU_SPAN", 1000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            parameters = {f"p{i}": torch.nn.Parameter(torch.zeros(7, 501)) for i in range(3)}
            surgeon = Surgeon(parameters, "mgs-tensor")
            for domain in ("a", "b", "c"):
                for parameter in parameters.values():
                    parameter.grad = torch.randn(7, 501, generator=generator)
                surgeon.collect(domain)
            record = surgeon.combine()
            results.append([record.gram_UDD, *(parameter.grad for parameter in parameters.values())])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
