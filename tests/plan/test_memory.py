"""The formulas against what a real Surgeon holds."""

import pytest
import torch

import plan_memory
from counterpoint import plan
from counterpoint.anatomy import Anatomy
from counterpoint.surgery._passes.scattered import make_buckets
from ranks_helper import run_ranks

UNITS = 26
"""Tensors of the model."""

LONGEST = 128 * 64
"""Elements of the model's longest parameter."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def test_parameters_are_counted_as_they_are():
    model = plan_memory.tiny()
    assert plan.local_total(plan_memory.shapes_of(model), 1) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("shape", [(16, 5), (7,), (1, 3), (64, 2, 2)])
def test_the_first_rank_holds_what_chunks_give_it(shape, shards):
    assert plan.local_elements(shape, shards) == torch.empty(shape).chunk(shards)[0].numel()


@pytest.mark.parametrize("buffers", plan.BUFFERS)
@pytest.mark.parametrize("domains", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_process(dtype, domains, buffers):
    model = plan_memory.tiny(DTYPES[dtype])
    size = plan.ITEM_SIZES[dtype]
    elements = plan.local_total(plan_memory.shapes_of(model), 1)
    found = plan_memory.measure(model, domains, buffers)
    device, host = plan.surgery_bytes(elements, domains, buffers, size, LONGEST)
    assert found["host"] == host
    check(found, elements * size, device, device if buffers != "cpu" else 0, domains)


@pytest.mark.parametrize("buffers", plan.BUFFERS)
def test_halves_are_vectors(buffers):
    model = plan_memory.tiny()
    elements = plan.local_total(plan_memory.shapes_of(model), 1)
    vectors = plan.num_vectors(2, True, micro_batches=4)
    device, host = plan.surgery_bytes(elements, vectors, buffers, 4, LONGEST)
    found = plan_memory.measure(model, 2, buffers, halves=True)
    assert (vectors, found["host"]) == (4, host)
    check(found, elements * 4, device, device if buffers != "cpu" else 0, vectors)


@pytest.fixture(scope="module")
def sharded():
    return run_ranks(plan_memory.measure_sharded, 2, 3)


@pytest.mark.parametrize("buffers", plan.BUFFERS)
def test_shards_of_two_ranks(sharded, buffers):
    elements = plan.local_total(plan_memory.shapes_of(plan_memory.tiny()), 2)
    device, host = plan.surgery_bytes(elements, 3, buffers, 4, LONGEST // 2)
    for rank in sharded:
        assert rank[buffers]["host"] == host
        check(rank[buffers], elements * 4, device, device if buffers != "cpu" else 0, vectors=3)


@pytest.fixture(scope="module")
def averaged():
    return run_ranks(plan_memory.measure_averaged, 2, 3)


@pytest.mark.parametrize("buffers", plan.BUFFERS)
def test_averaging_over_two_ranks(averaged, buffers):
    model = plan_memory.tiny()
    elements = plan.local_total(plan_memory.shapes_of(model), 1)
    bucket = max(bucket.shard * 2 for bucket in make_buckets(list(model.parameters()), 2))
    device, host = plan.averaging_bytes(elements, 3, buffers, 4, 2, bucket)
    waiting = 2 * elements * plan.waiting_size(buffers, 4) if buffers != "cpu" else 0
    for rank in averaged:
        assert rank[buffers]["host"] == host
        assert rank[buffers]["waiting"] == elements * 4 + waiting
        # gloo on the CPU receives into a second bucket, which NCCL does without
        most = elements * 4 + device + bucket * 4
        assert 0.75 * most <= rank[buffers]["inside"] <= most + slack(3)


def check(found: dict[str, int], gradient: int, device: int, waiting: int, vectors: int) -> None:
    """The bytes before, inside and after ``combine()``, of which ``gradient`` are ``.grad``'s own."""
    assert found["waiting"] == gradient + waiting
    assert gradient + device <= found["inside"] <= gradient + device + slack(vectors)
    assert found["after"] == gradient


def slack(vectors: int) -> int:
    """Inner products and weights are alive too, a few times over."""
    return 8 * UNITS * vectors**2 * 8


def test_vectors_never_outnumber_micro_batches():
    assert plan.num_vectors(3, False, 12) == 3
    assert plan.num_vectors(3, True, 12) == 6
    assert plan.num_vectors(3, True, 4) == 4
    assert plan.num_vectors(3, True, 3) == 3


def test_training_is_weights_gradient_and_two_moments():
    model = plan_memory.tiny()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = sum(
        value.nbytes for state in optimizer.state.values() for name, value in state.items() if name.startswith("exp_")
    )
    shapes = plan_memory.shapes_of(model)
    found = plan.make_plan(plan.ModelShapes("tiny", shapes, {}, Anatomy.of(shapes)), plan.Setup(), ("one process",))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    (rank,) = found.ranks
    assert (rank.weights, rank.gradient, rank.moments) == (weights, weights, moments)
