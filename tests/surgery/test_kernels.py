"""Both passes of the kernels against the same sums written out in float64."""

import itertools
import os
import sys
from dataclasses import dataclass

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from counterpoint.surgery import Surgeon, _kernels
from counterpoint.surgery._kernels import Span, plain, unit_grams, weighted_sums_

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NUM_UNITS = 4
SPANS = (
    Span(0, 0, 0, 300),
    Span(0, 2, 300, 1001),
    Span(1, 2, 0, 64),
    Span(1, 3, 64, 65),
    Span(2, 3, 0, 0),
    Span(3, 0, 5, 77),  # the other elements of block 3 are in no unit here: another rank counts them
)
SIZES = (1001, 65, 0, 80)


@dataclass(frozen=True)
class Case:
    """What the vectors look like: one dtype each, and which have no block 1."""

    dtypes: tuple[torch.dtype, ...]
    missing: tuple[int, ...] = ()

    def blocks(self, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        return [
            [
                None if b == 1 and v in self.missing else torch.randn(size, generator=generator, dtype=F64).to(dtype)
                for b, size in enumerate(SIZES)
            ]
            for v, dtype in enumerate(self.dtypes)
        ]


CASES = {
    "one": Case((F32,)),
    "two": Case((F32, F32), missing=(0,)),
    "three": Case((F32,) * 3, missing=(1,)),
    "nobody": Case((F32,) * 3, missing=(0, 1, 2)),
    "four in double": Case((F64,) * 4, missing=(3,)),
    "six": Case((F32,) * 6, missing=(0, 5)),
    "seven": Case((F32,) * 7),
    "eight in double": Case((F64,) * 8),
    "nine": Case((F32,) * 9, missing=(8,)),
    "ten in double": Case((F64,) * 10),
    "thirteen": Case((F32,) * 13, missing=(4,)),
    "sixteen": Case((F32,) * 16, missing=(2,)),
    "bfloat16 beside float32": Case((BF16, BF16, F32)),
    "bfloat16": Case((BF16,) * 5),
    "bfloat16, nine": Case((BF16,) * 8 + (F32,)),
    "all kinds": Case((F16, F64, F32, BF16, F32, F32), missing=(4,)),
}


def exact(case: Case, blocks_VB):
    """The vectors in float64 [V, elements of block b], zeros where a block is missing."""
    return [
        torch.stack([torch.zeros(size, dtype=F64) if blocks[b] is None else blocks[b].double() for blocks in blocks_VB])
        for b, size in enumerate(SIZES)
    ]


def exact_grams(case: Case, blocks_VB):
    gram_UVV = torch.zeros(NUM_UNITS, len(blocks_VB), len(blocks_VB), dtype=F64)
    whole = exact(case, blocks_VB)
    for span in SPANS:
        part = whole[span.block][:, span.low : span.high]
        gram_UVV[span.unit] += part @ part.T
    return gram_UVV


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IMPLEMENTATION = plain
if INTERPRETED:  # see test_kernels_triton.py
    from counterpoint.surgery._kernels import fused

    IMPLEMENTATION = fused


@pytest.fixture(autouse=True)
def implementation(monkeypatch):
    monkeypatch.setattr(_kernels, "_implementation", lambda *_: IMPLEMENTATION)


@pytest.fixture(params=[None, 128, 10], ids=["whole", "128 elements", "10 elements"])
def chunks(request, monkeypatch):
    """Chunks of any size give the same."""
    if INTERPRETED:
        if request.param == 10:
            pytest.skip("interpreted kernels are slow, and two sizes show as much as three")
        monkeypatch.setattr(fused, "ITEM", 300 if request.param else 1 << 15)
        monkeypatch.setattr(fused, "ROWS", 2)
        fused._layout.cache_clear()
    elif request.param:
        monkeypatch.setattr(plain, "CHUNK", request.param)
        monkeypatch.setattr(plain, "JOB", 4 * request.param)


@pytest.mark.parametrize("name", CASES)
def test_grams(name, chunks):
    case = CASES[name]
    blocks_VB = case.blocks()
    expected = exact_grams(case, blocks_VB)
    found = unit_grams(blocks_VB, SPANS, NUM_UNITS)
    assert found.dtype == F64
    assert torch.equal(found, found.mT)
    tight = set(case.dtypes) == {F64}
    scale = expected.diagonal(dim1=1, dim2=2).sqrt()
    error = (found - expected).abs() / (scale[:, :, None] * scale[:, None] + 1e-300)
    assert error.max() < (1e-14 if tight else 5e-7)
    # A unit without elements, and a vector without the unit's blocks, have products of exactly zero.
    assert found[1].eq(0).all()
    for v in case.missing:
        assert found[3, v].eq(0).all()


@pytest.mark.parametrize("target", ["first", "last", "other", "other in bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_weighted_sums(name, target, chunks):
    case = CASES[name]
    blocks_VB = case.blocks()
    whole = exact(case, blocks_VB)
    weights_UV = torch.randn(NUM_UNITS, len(blocks_VB), generator=torch.Generator().manual_seed(1), dtype=F64)
    weights_UV[0] = 1
    if target in ("first", "last"):
        order = blocks_VB if target == "first" else blocks_VB[::-1]
        targets_B = [next((blocks[b] for blocks in order if blocks[b] is not None), None) for b in range(len(SIZES))]
    else:
        dtype = BF16 if "bfloat16" in target else F64
        targets_B = [torch.full((size,), 7.0, dtype=dtype) for size in SIZES]
    before_B = [None if t is None else t.clone() for t in targets_B]
    weighted_sums_(blocks_VB, targets_B, SPANS, weights_UV)
    for span in SPANS:
        into = targets_B[span.block]
        if into is None or all(blocks[span.block] is None for blocks in blocks_VB):
            continue
        terms = weights_UV[span.unit][:, None] * whole[span.block][:, span.low : span.high]
        worst = max(torch.finfo(dtype).eps for dtype in (into.dtype, F64 if set(case.dtypes) == {F64} else F32))
        error = (into[span.low : span.high].double() - terms.sum(0)).abs()
        assert (error <= 2 * worst * terms.abs().sum(0) + worst * 1e-6).all()
    if targets_B[3] is not None:  # elements outside of all spans stay as they were
        assert torch.equal(targets_B[3][:5], before_B[3][:5])
        assert torch.equal(targets_B[3][77:], before_B[3][77:])


def test_ones_give_the_plain_sum_whatever_the_units():
    blocks_VB = CASES["three"].blocks()
    plain = blocks_VB[0][0] + blocks_VB[1][0] + blocks_VB[2][0]
    for cuts in ([0, 1001], [0, 10, 500, 1001]):
        vectors = [[blocks[0].clone()] for blocks in blocks_VB]
        spans = [Span(0, u, low, high) for u, (low, high) in enumerate(itertools.pairwise(cuts))]
        weighted_sums_(vectors, vectors[0], spans, torch.ones(len(spans), 3, dtype=F64))
        assert torch.equal(vectors[0][0], plain)


def test_a_weight_of_one_leaves_infinities_alone():
    vectors = [[torch.tensor([float("inf"), 1.0])], [torch.tensor([1.0, 2.0])]]
    weighted_sums_(vectors, vectors[0], [Span(0, 0, 0, 2)], torch.tensor([[1.0, 0.5]]))
    assert vectors[0][0].tolist() == [float("inf"), 2.0]


@pytest.mark.parametrize("num_vectors", [3, 8])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_spoils_its_own_vector_alone(num_vectors, bad):
    vectors = [[torch.ones(5000)] for _ in range(num_vectors)]
    vectors[1][0][4999] = bad
    gram_VV = unit_grams(vectors, [Span(0, 0, 0, 5000)], 1)[0]
    finite = gram_VV.isfinite()
    assert not finite[1].any()
    assert not finite[:, 1].any()
    assert finite.sum() == (num_vectors - 1) ** 2


def test_nothing_gives_nothing():
    assert unit_grams([[], []], [], 2).tolist() == torch.zeros(2, 2, 2).tolist()
    assert unit_grams([[None], [None]], [Span(0, 0, 0, 4)], 1).eq(0).all()
    weighted_sums_([[None]], [None], [Span(0, 0, 0, 4)], torch.ones(1, 1))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_low_precision_is_multiplied_in_float32(dtype):
    ones = torch.ones(60_000, dtype=dtype)
    tiny = torch.full_like(ones, 2**-7)
    gram_VV = unit_grams([[ones], [tiny]], [Span(0, 0, 0, 60_000)], 1)[0]
    # In bfloat16 a running sum of ones stops at 256; in float16 60 000 of them round and overflow soon after.
    assert gram_VV.tolist() == [[60_000, 468.75], [468.75, 60_000 * 2**-14]]


def test_low_precision_sums_are_rounded_once():
    parts = torch.tensor([[1.0], [2**-8], [2**-8]]).bfloat16()
    vectors = [[part.clone()] for part in parts]
    weighted_sums_(vectors, vectors[0], [Span(0, 0, 0, 1)], torch.ones(1, 3))
    assert vectors[0][0].item() == 1 + 2**-7
    # The control: rounding after each addition loses both small terms.
    assert (parts[0] + parts[1] + parts[2]).item() == 1.0


@pytest.mark.parametrize("num_vectors", [1, 3, 9])
def test_squares_of_millions_of_uneven_elements_are_summed_to_three_millionths(num_vectors):
    generator = torch.Generator().manual_seed(0)
    size = 1 << 21
    flips = torch.rand(num_vectors, size, generator=generator)
    vectors = -flips.log() * torch.where(torch.rand(num_vectors, size, generator=generator) < 0.5, -1.0, 1.0)
    gram_VV = plain.unit_grams([[vector] for vector in vectors], [Span(0, 0, 0, size)], 1)[0]
    exact_VV = vectors.double() @ vectors.double().mT
    lengths_V = exact_VV.diagonal().sqrt()
    assert ((gram_VV - exact_VV).abs() / (lengths_V[:, None] * lengths_V)).max() < 3e-6


@pytest.mark.parametrize("strategy", ["mgs-tensor", "pcgrad"])
@pytest.mark.parametrize("num_domains", [3, 6])
def test_the_result_does_not_depend_on_the_number_of_threads(num_domains, strategy, monkeypatch):
    monkeypatch.setattr(plain, "JOB", 1000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            parameters = {f"p{i}": torch.nn.Parameter(torch.zeros(7, 501)) for i in range(3)}
            surgeon = Surgeon(parameters, strategy)
            for domain in range(num_domains):
                for parameter in parameters.values():
                    parameter.grad = torch.randn(7, 501, generator=generator)
                surgeon.collect(f"domain-{domain}")
            record = surgeon.combine()
            results.append([record.gram_UDD, *(parameter.grad for parameter in parameters.values())])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_number_of_torch_threads_is_put_back():
    def fail(item):
        raise RuntimeError(item)

    before = torch.get_num_threads()
    try:
        for wanted in (1, 2):
            torch.set_num_threads(wanted)
            with pytest.raises(RuntimeError, match="0"):
                plain.in_threads(fail, range(4))
            assert torch.get_num_threads() == wanted
            assert plain.in_threads(lambda item: item * 2, range(5)) == [0, 2, 4, 6, 8]
    finally:
        torch.set_num_threads(before)


class WithoutFloat64(torch.Tensor):
    """A tensor on a device that has no float64, as Apple's MPS: asking for it there raises."""

    @staticmethod
    def __new__(cls, inside: torch.Tensor):
        tensor = torch.Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype, device="meta")
        tensor.inside = inside
        return tensor

    def data_ptr(self):
        return self.inside.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        to_host = kwargs.pop("device", None) == torch.device("cpu")
        args, kwargs = tree_map_only(cls, lambda tensor: tensor.inside, (args, kwargs))
        out = function(*args, **kwargs)
        if to_host:
            return out
        if any(tensor.dtype == F64 for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)):
            raise TypeError("Cannot convert a tensor to float64 on this device.")
        return tree_map_only(torch.Tensor, cls, out)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nothing_is_float64_on_a_device_without_it(dtype):
    with pytest.raises(TypeError, match="float64"):
        WithoutFloat64(torch.ones(3)).double()
    blocks_VB = Case((dtype,) * 3, missing=(1,)).blocks()
    there_VB = [[None if block is None else WithoutFloat64(block) for block in blocks] for blocks in blocks_VB]
    found = unit_grams(there_VB, SPANS, NUM_UNITS)
    assert type(found) is torch.Tensor
    assert torch.equal(found, unit_grams(blocks_VB, SPANS, NUM_UNITS))
    targets_B = [torch.zeros(size) for size in SIZES]
    expected_B = [target.clone() for target in targets_B]
    weights_UV = torch.rand(NUM_UNITS, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    weighted_sums_(there_VB, [WithoutFloat64(target) for target in targets_B], SPANS, weights_UV)
    weighted_sums_(blocks_VB, expected_B, SPANS, weights_UV)
    assert all(torch.equal(a, b) for a, b in zip(targets_B, expected_B, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="about the choice between implementations")
class TestChoice:
    def test_a_trial_tells_right_from_wrong(self):
        class Wrong:
            unit_grams = staticmethod(lambda *args: plain.unit_grams(*args) * 1.01)
            weighted_sums_ = staticmethod(plain.weighted_sums_)

        assert _kernels.trial(plain, torch.device("cpu")) < 1e-6
        assert _kernels.trial(Wrong, torch.device("cpu")) == pytest.approx(0.01, rel=1e-3)

    def test_without_triton_a_gpu_does_without_fused_kernels_and_says_so_once(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "triton", None)
        monkeypatch.delitem(sys.modules, "triton.errors", raising=False)
        device = torch.device("cuda", 7)
        with pytest.warns(RuntimeWarning, match=r"Surgery on cuda:7 does without its fused kernels.*install triton"):
            assert _kernels._fused_on(device) is None
        assert _kernels._fused_on(device) is None  # warnings are errors here
        _kernels._fused_on.cache_clear()
