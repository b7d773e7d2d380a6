"""The Surgeon on several gloo ranks: one truth whatever the placement, and ranks that disagree are told."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from counterpoint.errors import RankMismatchError, StrategyError, UnsupportedError
from counterpoint.surgery import Surgeon
from ranks_helper import run_ranks

NAMES = ["math", "code", "qa"]
SHAPES = {"layers.0.mlp.up.weight": (6, 4), "layers.0.mlp.down.weight": (5, 6), "layers.1.mlp.bias": (3,)}


def gradients(domain, rank=0):
    """The same on every process: each rank's own gradient of a domain."""
    generator = torch.Generator().manual_seed(10 * NAMES.index(domain) + rank)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}


def average(domain, world):
    parts = [gradients(domain, rank) for rank in range(world)]
    return {name: sum(part[name] for part in parts) / world for name in SHAPES}


def parameters():
    return {name: nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for name, shape in SHAPES.items()}


def truth(world, domains=NAMES, **options):
    """One process with every rank's data."""
    params = parameters()
    surgeon = Surgeon(params, **options)
    for domain in domains:
        for name, gradient in average(domain, world).items():
            params[name].grad = gradient
        surgeon.collect(domain)
    return surgeon.combine(), {name: param.grad for name, param in params.items()}


def close(record, params, expected):
    record_0, grads_0 = expected
    torch.testing.assert_close(record.gram_UDD, record_0.gram_UDD, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(record.weights_GD, record_0.weights_GD, rtol=1e-11, atol=1e-12)
    for name, param in params.items():
        grad = param.grad.full_tensor() if isinstance(param.grad, DTensor) else param.grad
        torch.testing.assert_close(grad, grads_0[name], rtol=1e-11, atol=1e-12)
    return record.weights_GD.tolist()


def _averaged(orders, buffers, strategy):
    rank, world = dist.get_rank(), dist.get_world_size()
    params = parameters()
    surgeon = Surgeon(params, strategy, average_over=dist.group.WORLD, buffers=buffers)
    for _ in range(2):  # the second step reuses what the ranks know of each other
        for domain in orders[rank]:
            for name, gradient in gradients(domain, rank).items():
                params[name].grad = gradient
            surgeon.collect(domain, last=domain == orders[rank][-1])
        record = surgeon.combine()
        surgeon.step = 0
    return close(record, params, truth(world, strategy=strategy))


@pytest.mark.parametrize("strategy", ["mixed", "mgs", "mgs-tensor"])
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_of_ranks_in_any_order_are_averaged_by_domain(world, strategy):
    orders = [NAMES[r:] + NAMES[:r] for r in range(world)]
    weights = run_ranks(_averaged, world, orders, "cpu", strategy)
    assert all(w == weights[0] for w in weights)


def _come_and_go(steps):
    """Collectives of every step by name, while domains come, stay away, and come back after a resumption."""
    rank, world = dist.get_rank(), dist.get_world_size()
    called, found = [], []
    for name in ("all_reduce", "all_gather_object"):
        function = getattr(dist, name)
        setattr(dist, name, lambda *args, _f=function, _n=name, **options: [called.append(_n), _f(*args, **options)][1])
    surgeon = Surgeon(params := parameters(), average_over=dist.group.WORLD)
    for number, orders in enumerate(steps):
        if number == 2:
            state = surgeon.state_dict()
            surgeon = Surgeon(params := parameters(), average_over=dist.group.WORLD)
            surgeon.load_state_dict(state)
        for domain in orders[rank]:
            for name, gradient in gradients(domain, rank).items():
                params[name].grad = gradient
            surgeon.collect(domain)
        called.clear()
        surgeon.step = 0
        record = surgeon.combine()
        found.append((called.count("all_reduce"), called.count("all_gather_object")))
        domains = sorted(set(orders[0]) | set(orders[1]))
        close(record, params, truth(world, domains) if orders[0] and orders[1] else halved(domains, orders))
    return found


def halved(domains, orders):
    """One process where only the ranks that have a domain add to its average."""
    params = parameters()
    surgeon = Surgeon(params)
    for domain in domains:
        for name in SHAPES:
            params[name].grad = sum(gradients(domain, rank)[name] for rank in (0, 1) if domain in orders[rank]) / 2
        surgeon.collect(domain)
    return surgeon.combine(), {name: param.grad for name, param in params.items()}


def test_one_all_reduce_tells_everything_unless_a_domain_is_new():
    both, math = [["math", "code"], ["code", "math"]], [["math"], ["math"]]
    late = [["qa", "math"], ["math", "qa"]]
    steps = [both, both, both, math, [[], ["code"]], late, both] + [math] * 9 + [both, both]
    known, new, first = (1, 0), (2, 1), (1, 1)
    expected = [first, known, known, known, known, new, known] + [known] * 9 + [new, known]
    assert run_ranks(_come_and_go, 2, steps) == [expected] * 2


def test_ranks_that_collected_nothing_say_so_together_and_go_on():
    assert run_ranks(_nothing_then_math, 2) == [[True, True, 1.0]] * 2


def _nothing_then_math():
    surgeon = Surgeon(params := parameters(), average_over=dist.group.WORLD)
    said = []
    for _ in range(2):
        with pytest.raises(StrategyError, match="without a collected domain"):
            surgeon.combine()
        said.append(surgeon.step == 0)
        for param in params.values():
            param.grad = torch.ones_like(param)
        surgeon.collect("math")
        surgeon.combine()
        surgeon.step = 0
    return [*said, float(params["layers.1.mlp.bias"].grad[0])]


def _missing():
    rank = dist.get_rank()
    params = parameters()
    surgeon = Surgeon(params, average_over=dist.group.WORLD)
    if rank == 0:  # rank 1 has no row of any domain, and the bias has no gradient anywhere
        for name in list(SHAPES)[:2]:
            params[name].grad = gradients("qa")[name]
        surgeon.collect("qa")
    surgeon.combine()
    for name in list(SHAPES)[:2]:
        torch.testing.assert_close(params[name].grad, gradients("qa")[name] / 2)
    return params["layers.1.mlp.bias"].grad


def test_a_rank_without_rows_counts_as_zero_and_a_parameter_without_gradient_gets_none():
    assert run_ranks(_missing, 2) == [None, None]


def _counted(numbers):
    seen = []

    def look(gram_GDD, context):
        seen.append(context.halves.counts_D2.tolist())
        return torch.ones(gram_GDD.shape[:2])

    look.uses_halves = True
    params = parameters()
    surgeon = Surgeon(params, grouping="global", weighting=look, average_over=dist.group.WORLD)
    for domain, number in zip(NAMES, numbers[dist.get_rank()], strict=False):
        for i in range(number):
            for name, gradient in gradients(domain, i).items():
                params[name].grad = gradient
            surgeon.collect(domain)
    surgeon.combine()
    return seen[0]


def test_halves_count_the_micro_batches_of_all_ranks():
    """A contrast of halves has mean zero only if it knows how many micro-batches are in each, wherever they were."""
    assert run_ranks(_counted, 2, [[3, 2], [1, 1]]) == [[[2, 1], [3, 1]]] * 2  # code, then math


def _placed(placements, mesh_shape):
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("a", "b", "c")[: len(mesh_shape)])
    params = {
        name: nn.Parameter(distribute_tensor(torch.zeros(shape, dtype=torch.float64), mesh, placed))
        for (name, shape), placed in zip(SHAPES.items(), placements, strict=True)
    }
    surgeon = Surgeon(params)
    for domain in NAMES:
        for (name, gradient), placed in zip(average(domain, world).items(), placements, strict=True):
            params[name].grad = distribute_tensor(gradient, mesh, placed)
        surgeon.collect(domain)
    record = surgeon.combine()
    return close(record, params, truth(world))


@pytest.mark.parametrize(
    ("mesh_shape", "placements"),
    [
        ((2,), [[Shard(0)], [Shard(0)], [Shard(0)]]),
        ((2,), [[Shard(1)], [Replicate()], [Shard(0)]]),
        ((4,), [[Shard(0)], [Shard(0)], [Shard(0)]]),  # the bias has 3 rows: one rank holds nothing
        ((2, 2), [[Replicate(), Shard(0)], [Replicate(), Shard(0)], [Replicate(), Shard(0)]]),
        ((2, 2), [[Shard(0), Shard(1)], [Shard(1), Shard(0)], [Shard(0), Replicate()]]),
        ((2, 2), [[Replicate(), Replicate()], [Shard(0), Shard(0)], [Replicate(), Shard(0)]]),
    ],
)
def test_inner_products_are_summed_over_the_cut_mesh_dimensions_only(mesh_shape, placements):
    world = torch.Size(mesh_shape).numel()
    weights = run_ranks(_placed, world, placements, mesh_shape)
    assert all(w == weights[0] for w in weights)


def _partial():
    mesh = init_device_mesh("cpu", (2,))
    params = {"w": nn.Parameter(distribute_tensor(torch.zeros(4, 4), mesh, [Replicate()]))}
    surgeon = Surgeon(params, grouping="global")
    for i, domain in enumerate(NAMES[:2]):
        own = torch.full((4, 4), float(dist.get_rank() + 1 + i))
        params["w"].grad = DTensor.from_local(own, mesh, [Partial()])
        surgeon.collect(domain)
    return surgeon.combine().gram_GDD[0].tolist()


def test_partial_gradients_are_summed_before_anything_else():
    assert run_ranks(_partial, 2) == [[[16 * 25.0, 16 * 15.0], [16 * 15.0, 16 * 9.0]]] * 2


def _experts():
    mesh = init_device_mesh("cpu", (4,))
    whole = torch.randn(6, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    name = "layers.0.mlp.experts.down_proj"
    plain = nn.Parameter(torch.zeros_like(whole))
    cut = nn.Parameter(distribute_tensor(torch.zeros_like(whole), mesh, [Shard(0)]))
    grams = []
    for param, give in ((plain, lambda g: g), (cut, lambda g: distribute_tensor(g, mesh, [Shard(0)]))):
        surgeon = Surgeon({name: param})
        for i, domain in enumerate(NAMES):
            param.grad = give(whole.roll(i, 2) * (i + 1))
            surgeon.collect(domain)
        record = surgeon.combine()
        assert len(record.groups) == 6
        grams.append(record.gram_GDD)
    torch.testing.assert_close(grams[0], grams[1], rtol=1e-13, atol=1e-13)


def test_fused_experts_cut_over_ranks_keep_their_own_grams():
    run_ranks(_experts, 4)  # 6 experts on 4 ranks: 2, 2, 2, 0


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.mlp(x).tanh()


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.square().sum()


def _disagreeing(orders, wrap):
    torch.manual_seed(0)
    model = Model()
    if wrap == "ddp":
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        fully_shard(model)
    surgeon = Surgeon(model)
    for domain in orders[dist.get_rank()]:
        model(torch.ones(2, 3)).backward()
        surgeon.collect(domain)
    surgeon.combine()


@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
@pytest.mark.parametrize(
    "orders", [[["math", "code"], ["code", "math"]], [["math", "code"], ["math", "math"]], [["a"], ["b"]]]
)
def test_ranks_that_collected_different_domains_are_told_which(wrap, orders):
    with pytest.raises(RankMismatchError, match=f"rank 0: {', '.join(orders[0])}; rank 1: {', '.join(orders[1])}"):
        run_ranks(_disagreeing, 2, orders, wrap)


def _bucket_views():
    torch.manual_seed(0)
    plain, wrapped = Model(), Model()
    wrapped.load_state_dict(plain.state_dict())
    wrapped = DistributedDataParallel(wrapped, gradient_as_bucket_view=True)
    inputs = {name: torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(NAMES)}
    records = []
    for model in (plain, wrapped):
        surgeon = Surgeon(model)
        for name in NAMES:
            model(inputs[name]).backward()
            surgeon.collect(name)
        records.append((surgeon.combine(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(records[0][0].gram_UDD, records[1][0].gram_UDD)
    torch.testing.assert_close(records[0][1], records[1][1])


def test_bucket_views_of_ddp_are_copied_without_being_asked():
    run_ranks(_bucket_views, 2)


def _averaging_dtensors():
    model = Model()
    fully_shard(model)
    Surgeon(model, average_over=dist.group.WORLD)


def test_averaging_sharded_gradients_again_is_refused():
    with pytest.raises(UnsupportedError, match="Leave average_over out"):
        run_ranks(_averaging_dtensors, 2)


def _flattened(use_orig_params, as_names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls FSDP1 outdated
        model = FullyShardedDataParallel(Model(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    Surgeon(dict(model.named_parameters()) if as_names else model, grouping="tensor")


@pytest.mark.parametrize("as_names", [False, True], ids=["model", "names"])
@pytest.mark.parametrize("use_orig_params", [False, True], ids=["flat", "original"])
def test_flat_parameters_are_refused(use_orig_params, as_names):
    """Groupings that know no names would take each rank's shard for the whole."""
    with pytest.raises(UnsupportedError, match=r"FSDP1 .* keeps flat parameters.*Use FSDP2"):
        run_ranks(_flattened, 2, use_orig_params, as_names)
