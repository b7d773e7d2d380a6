"""The suite can fail, says what failed, and says what it did not run; its reference is right."""

import io
import json
import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from rich.console import Console

from counterpoint.cli import verify as command
from counterpoint.errors import ConfigError, UnsupportedError
from counterpoint.surgery import GROUPINGS, Context, group_parameters
from counterpoint.surgery.weightings.pcgrad import random_orders
from counterpoint.verify import CASES, PLANTED, World, _cases, _suite, open_world, run_suite, select
from counterpoint.verify._model import ModelSpec, Plan, build_model, named_trainable, policy_loss
from counterpoint.verify._suite import Spread, follow
from exactness.variants import VARIANTS
from ranks_helper import run_ranks

CPU = torch.device("cpu")
CASE = replace(VARIANTS["alone"], plan=Plan(steps=2))
TOO_STRICT = replace(CASE, tolerances={"weights": -1.0})  # one process is bitwise the reference


@pytest.fixture
def world():
    with open_world("cpu", "float64") as found:
        yield found


def printed(outcomes, world, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(file=file, width=118))
    command._print(outcomes, world)
    return file.getvalue()


def test_an_error_beyond_its_tolerance_fails(world, monkeypatch):
    outcomes = run_suite(world, {"strict": TOO_STRICT, "whole": CASE})
    assert [outcome.status for outcome in outcomes] == ["failed", "held"]
    text = printed(outcomes, world, monkeypatch)
    assert "Not exact on 1 rank, cpu, float64: 1 of 2 cases held" in text
    assert "strict: beyond its tolerance" in text


def test_a_bug_that_is_not_seen_fails(world, monkeypatch):
    outcomes = run_suite(world, {"blind": replace(CASE, seen_by="gradients")})
    assert [outcome.status for outcome in outcomes] == ["failed"]
    assert "0 of 1 planted bugs were seen" in printed(outcomes, world, monkeypatch)


@pytest.mark.parametrize("seen_by", ["", "weights"])
def test_an_error_that_is_no_number_is_not_within_tolerance(world, monkeypatch, seen_by):
    monkeypatch.setattr(_suite, "measure", lambda case, world: {"weights": math.nan})
    assert [o.status for o in run_suite(world, {"nan": replace(CASE, seen_by=seen_by)})] == ["failed"]


def _raises(model, world):
    raise RuntimeError("no such thing here")


def _raises_on_the_second(case, world):
    return _raises(None, world) if world.rank == 1 else {}


def broken():
    with open_world("cpu", "float64") as world:
        outcomes = run_suite(world, {"broken": replace(CASE, spread=_raises), "whole": CASE})
        with patch.object(_suite, "measure", _raises_on_the_second):
            outcomes += run_suite(world, {"torn": CASE, "next": CASE})
    return [(outcome.name, outcome.status, outcome.note) for outcome in outcomes]


def test_what_breaks_on_all_ranks_is_reported_and_the_next_case_runs_unless_only_some_broke():
    by_rank = run_ranks(broken, 2)
    assert by_rank[0] == by_rank[1]
    assert by_rank[0] == [
        ("broken", "failed", "rank 0: RuntimeError: no such thing here"),
        ("whole", "held", ""),
        ("torn", "failed", "rank 1: RuntimeError: no such thing here"),
        ("next", "not run", "after 'torn' broke off on some ranks"),
    ]


def test_what_needs_more_ranks_is_not_run_and_printed(world, monkeypatch):
    outcomes = run_suite(world, {name: CASES[name] for name in ("ddp", "hsdp")} | PLANTED)
    assert {outcome.status for outcome in outcomes} == {"not run"}
    text = printed(outcomes, world, monkeypatch)
    assert "needs 2 ranks or more: ddp; orders differ" in text
    assert "needs 4 ranks or more, a multiple of 2: hsdp" in text
    assert "Nothing was run on 1 rank" in text


def test_without_peft_its_case_is_not_run(world, monkeypatch):
    monkeypatch.setattr(_cases, "find_spec", lambda name: None)
    outcomes = run_suite(world, {"lora": CASES["lora"]})
    assert [outcome.status for outcome in outcomes] == ["not run"]
    assert "needs PEFT (pip install 'counterpoint[peft]'): lora." in printed(outcomes, world, monkeypatch)


def test_the_numbers_can_be_written_as_json(world, tmp_path):
    command._write(tmp_path / "report.json", run_suite(world, {"strict": TOO_STRICT}), world)
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["exact"], data["dtype"], data["outcomes"][0]["tolerances"]["weights"]) == (False, "float64", -1)


def test_cases_are_selected_by_how_their_names_begin():
    assert set(select(["fsdp2", "orders"])) == {"fsdp2", "orders differ"}
    assert select([]) == CASES | PLANTED
    with pytest.raises(ConfigError, match=r"No case or planted bug begins with 'fsdp3': did you mean 'fsdp2'\?"):
        select(["fsdp3"])


def test_wrong_places_are_refused():
    with pytest.raises(ConfigError, match="Unknown dtype 'float16'"), open_world("cpu", "float16"):
        pass
    with pytest.raises(UnsupportedError, match=r"The device 'cuda' is not there.*--device cpu"), open_world("cuda"):
        pass


PLANS = {
    "even": Plan(shards=3),
    "uneven": Plan(shards=3, micro_batches=4, uneven=True),
    "own ways": Plan(shards=4, uneven=True, own_ways=True),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_ranks_micro_batches_make_up_all_rows(plan):
    for step in range(6):
        for domain in plan.names(step):
            everything = plan.micro(step, domain, range(plan.shards))
            pieces = [rows for shard in range(plan.shards) for rows in plan.micro(step, domain, (shard,))]
            assert sum(len(tokens) for tokens, _ in everything) == plan.num_rows(step, domain) > 0
            assert all(map(torch.equal, sum(pieces, ()), sum(everything, ())))


def test_plans_are_as_awkward_as_they_say():
    uneven, own = PLANS["uneven"], PLANS["own ways"]
    sizes = {len(rows[0]) for shard in range(3) for rows in uneven.micro(0, "domain-0", (shard,))}
    assert sizes == {0, 1, 2, 3}
    assert any(len(uneven.names(step)) == 2 for step in range(uneven.steps))
    assert len({tuple(own.order(0, (shard,))) for shard in range(own.shards)}) > 1
    assert any(len(own.order(step, (shard,))) < len(own.names(step)) for step in range(3) for shard in range(4))
    assert len({len(own.micro(0, "domain-1", (shard,))) for shard in range(own.shards)}) > 1
    assert PLANS["even"].names(1) == ["domain-1", "domain-2", "domain-0"]


@pytest.mark.parametrize("spec", [ModelSpec(), ModelSpec(experts=2)], ids=["plain", "experts"])
def test_the_reference_is_what_pcgrad_on_whole_vectors_comes_to(spec):
    """By brute force: one backward pass over all rows, and algorithm 1 of the paper on the vectors themselves."""
    plan = replace(PLANS["uneven"], steps=1)
    trace = follow(Spread(build_model(spec, torch.float64), range(plan.shards)), plan, CPU)
    domains, gradients = tuple(sorted(plan.names(0))), {}
    for domain in domains:
        model = build_model(spec, torch.float64)
        tokens, advantages = map(torch.cat, zip(*plan.micro(0, domain, range(plan.shards)), strict=True))
        (policy_loss(model, tokens, advantages) / len(tokens)).backward()
        gradients[domain] = {name: parameter.grad for name, parameter in named_trainable(model).items()}
        torch.testing.assert_close(trace.gradients[domain], gradients[domain])
    (record,) = trace.records
    for grouping in GROUPINGS:
        vectors = _vectors(gradients, domains, grouping)
        groups, gram_GDD = record.regroup(grouping)
        torch.testing.assert_close(gram_GDD, torch.stack([vectors[group] @ vectors[group].T for group in groups]))
    weights_GD = _by_hand(_vectors(gradients, domains, "module"), domains)
    assert weights_GD.ne(1).any(), "nothing conflicts"
    torch.testing.assert_close(record.weights_GD, weights_GD)


def _vectors(gradients, domains, grouping):
    """For every group the domains' gradients as rows [D, P]."""
    shapes = {name: tuple(gradient.shape) for name, gradient in gradients[domains[0]].items()}
    pieces = {}
    for name, owners in group_parameters(shapes, grouping).items():
        stacked = torch.stack([gradients[domain][name].reshape(len(owners), -1) for domain in domains], 1)
        for owner, rows_DP in zip(owners, stacked, strict=True):
            pieces.setdefault(owner, []).append(rows_DP)
    return {group: torch.cat(parts, 1) for group, parts in pieces.items()}


def _by_hand(vectors, domains):
    """PCGrad's weights [G, D]: the sum of the projected vectors, as a combination of the originals."""
    context, weights = Context(tuple(vectors), domains, 0, 0), []
    for rows_DP, order_DD in zip(vectors.values(), random_orders(context, context.groups).tolist(), strict=True):
        projected_DP = rows_DP.clone()
        for i, others in enumerate(order_DD):
            for j in others:
                if (inner := projected_DP[i] @ rows_DP[j]) < 0:
                    projected_DP[i] -= inner / (rows_DP[j] @ rows_DP[j]) * rows_DP[j]
        weights.append(torch.linalg.lstsq(rows_DP.T, projected_DP.sum(0)).solution)
    return torch.stack(weights)


@pytest.mark.parametrize("spec", [ModelSpec(), ModelSpec(tied=True), ModelSpec(experts=2)])
def test_models_are_equal_in_every_dtype_and_leave_the_global_generator_alone(spec):
    before = torch.get_rng_state()
    single, double = build_model(spec, torch.float32), build_model(spec, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    for name, parameter in named_trainable(single).items():
        assert torch.equal(parameter.double(), named_trainable(double)[name])


def test_a_world_gathers_by_rank(world):
    assert isinstance(world, World)
    assert world.gather("mine") == ["mine"]
