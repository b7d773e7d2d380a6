"""Planted bugs: what the suite must see, and how large each one's error is.

Each is a mistake that training on several ranks invites, made on purpose. A control holds when the suite's own measure
is off by more than ``FACTOR`` times what it allows.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import RankMismatchError
from ..surgery import Context, Record
from ..surgery._passes.ranks import check_words
from ..surgery.weightings.pcgrad import project
from .case import EXACT, TWO, USUAL_MODEL, Case, Spread
from .cases.ddp import ddp
from .cases.fsdp import fsdp
from .cases.tensor_parallel import divides_heads, tensor_parallel
from .data import Plan, Rows
from .measure import Errors, Measured, drift, gradient_error, gram_error
from .trial import Trial, prepare
from .truth import Trajectory, truth
from .world import World

FACTOR = 100
"""How many times its tolerance an error must exceed to count as seen."""

PLAN = Plan(domains=3, steps=4)


@dataclass(frozen=True)
class Control:
    """A bug and the measure that must see it."""

    what: str
    run: Callable[[World], Errors]
    """The suite's measures of what is off, or ``refused`` for a bug that must raise; a collective."""
    needs: Callable[[World], str] = TWO


@dataclass(frozen=True)
class OtherData(Plan):
    """Ranks that agree on the names and go through the data in orders of their own."""

    def micro(self, step: int, domain: str, shard: int, device: torch.device | str = "cpu") -> list[Rows]:
        """Micro-batches of some other domain."""
        names = self.names(step)
        return super().micro(step, names[(names.index(domain) + shard) % len(names)], shard, device)


@dataclass(frozen=True)
class OtherOrder(Plan):
    """Ranks that go through names and data in orders of their own."""

    def order(self, step: int, shard: int) -> list[str]:
        """The names, turned by the rank's number."""
        names = self.names(step)
        turn = shard % len(names)
        return names[turn:] + names[:turn]


def trial_of(spread: Callable[[nn.Module, World], Spread], world: World, plan: Plan = PLAN) -> Trial:
    """A trial of the suite's usual model."""
    return prepare(Case("planted", spread, plan=plan), world)


def other_data(spread: Callable[[nn.Module, World], Spread], world: World) -> Errors:
    """Every buffer becomes a mixture of all domains."""
    return _probed(trial_of(spread, world, OtherData(**vars(PLAN))), world)


def told_apart(spread: Callable[[nn.Module, World], Spread], world: World) -> Errors:
    """The same with names that tell: an infinite error where the Surgeon raises, zero where it does not."""
    trial = trial_of(spread, world, OtherOrder(**vars(PLAN)))
    surgeon = trial.surgeon()
    trial.collect(surgeon, 0)
    try:
        surgeon.combine()
    except RankMismatchError:
        return {"refused": Measured(math.inf, 0.0)}
    return {"refused": Measured(0.0, 0.0)}


def unsynchronised(model: nn.Module, world: World) -> Spread:
    """DDP as accumulation usually runs it: reduced in the last micro-batch of a step, local gradients before it."""
    spread = ddp(model, world)
    wrapped, count = spread.model, itertools.count(1)
    per_step = PLAN.domains * PLAN.micro_batches
    return replace(spread, sync=lambda last: nullcontext() if next(count) % per_step == 0 else wrapped.no_sync())  # type: ignore[operator]


def sync_off(world: World) -> Errors:
    """Buffers hold each rank's own gradients."""
    return _probed(trial_of(unsynchronised, world), world)


def local_grams(world: World) -> Errors:
    """Every rank takes its shard's inner products for the whole."""
    trial = trial_of(fsdp, world)
    surgeon = trial.surgeon()
    ranks = surgeon._passes.ranks
    assert ranks is not None
    summed, words = ranks.sum, len(check_words(()))

    def only_the_check_words(values: Tensor) -> Tensor:
        return torch.cat([values[:-words], summed(values.clone())[-words:].to(values.device)])

    ranks.sum = only_the_check_words  # type: ignore[method-assign]
    trial.collect(surgeon, 0)
    return _grams(surgeon.combine(), truth(USUAL_MODEL, trial.plan, world.device), world)


def counted_twice(world: World) -> Errors:
    """Every rank contributes the inner products of what all ranks hold whole, beside those of its shards."""
    trial = trial_of(tensor_parallel if not divides_heads(world) else ddp, world)
    surgeon = trial.surgeon()
    assert surgeon._passes.ranks is not None
    surgeon._passes.ranks.owns_P = [True] * len(surgeon._passes.ranks.owns_P)
    trial.collect(surgeon, 0)
    return _grams(surgeon.combine(), truth(USUAL_MODEL, trial.plan, world.device), world)


def unseeded(gram_GDD: Tensor, context: Context) -> Tensor:
    """PCGrad in an order drawn from torch's global generator."""
    num_domains = context.num_domains
    draws_GDD = torch.rand(len(gram_GDD), num_domains, num_domains, dtype=torch.float64)
    draws_GDD.diagonal(dim1=-2, dim2=-1).fill_(2.0)
    everyone_GDD = torch.ones_like(gram_GDD, dtype=torch.bool)
    return project(gram_GDD, draws_GDD.argsort(dim=-1)[..., :-1], everyone_GDD).sum(1)


def own_randomness(world: World) -> Errors:
    """Weights differ between ranks, so that copies of the model drift apart."""
    trial = trial_of(ddp, world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(world.rank)  # as data loaders and sampling leave it
        records = trial.train(trial.surgeon(weighting=unseeded))
    weights_SGD = torch.stack([record.weights_GD for record in records])
    end = {name: parameter.detach().cpu() for name, parameter in trial.parameters.items()}
    right = truth(USUAL_MODEL, trial.plan, world.device)
    first_weights_SGD, first_end = world.gather((weights_SGD, end))[0]
    allowed = EXACT[world.dtype]
    return {
        "weights": Measured((weights_SGD - first_weights_SGD).abs().max().item(), allowed.weights),
        "parameters": Measured(drift(end, first_end, right), allowed.parameters),
    }


def _probed(trial: Trial, world: World) -> Errors:
    found, record = trial.probe()
    right = truth(USUAL_MODEL, replace(PLAN, shards=trial.plan.shards), world.device)
    return {"gradients": Measured(gradient_error(found, right.gradients), EXACT[world.dtype].gradients)} | _grams(
        record, right, world
    )


def _grams(record: Record, right: Trajectory, world: World) -> Errors:
    return {"Grams": Measured(gram_error(record, right), EXACT[world.dtype].grams)}


CONTROLS: dict[str, Control] = {
    "ddp, orders differ": Control("ranks work on different domains at a time", partial(other_data, ddp)),
    "fsdp2, orders differ": Control("the same under fully_shard", partial(other_data, fsdp)),
    "ddp, orders differ, told": Control("ranks name the different domains they collect", partial(told_apart, ddp)),
    "fsdp2, orders differ, told": Control("the same under fully_shard", partial(told_apart, fsdp)),
    "sync_each_batch off": Control("DDP reduces a step's last micro-batch only", sync_off),
    "shard-local Grams": Control("no all-reduce of inner products", local_grams),
    "replicas counted twice": Control(
        "every rank contributes the inner products of what all ranks hold", counted_twice
    ),
    "unseeded order": Control("PCGrad draws its order from the global generator", own_randomness),
}
"""The planted bugs by name."""
