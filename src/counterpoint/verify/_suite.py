"""Trains every case as a user's loop would, and says how far it is from the truth on all ranks together."""

import functools
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import ConfigError, nearest
from ..surgery import GROUPINGS, Context, Record, Surgeon, Weighting
from ..surgery._passes.shards import is_dtensor
from ._cases import CASES, FACTOR, PLANTED, Case, Spread, Tolerances
from ._model import ModelSpec, Plan, build_model, named_trainable, policy_loss
from ._world import World

FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ImportError)
"""What a back end raises for something it cannot do. The suite reports it and goes on: here failure is a result."""

MAX_NORM = 0.1
"""Small enough that clipping always acts."""

Errors = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What came of one case or planted bug, on all ranks together."""

    name: str
    what: str
    seen_by: str
    """For a planted bug the error that must be large."""
    status: str
    """``held``, ``failed`` or ``not run``; ``seen`` for a planted bug."""
    note: str = ""
    """Why it failed or was not run."""
    errors: Errors = field(default_factory=dict)
    """The largest of all ranks: gradients, Grams, weights, parameters (relative), copies (a number)."""
    tolerances: Tolerances = field(default_factory=dict)
    seconds: float = 0.0
    torn: bool = False
    """It broke off on some ranks only, so that they no longer agree on what comes next."""


def select(only: Iterable[str]) -> dict[str, Case]:
    """The cases and planted bugs whose names begin with one of ``only``; all where it is empty."""
    known = CASES | PLANTED
    for start in only:
        if not any(name.startswith(start) for name in known):
            raise ConfigError(f"No case or planted bug begins with {start!r}: {nearest(start, known)}")
    return {name: case for name, case in known.items() if name.startswith(tuple(only) or ("",))}


def run_suite(
    world: World, cases: Mapping[str, Case] = CASES | PLANTED, announce: Callable[[str], None] = lambda name: None
) -> list[Outcome]:
    """Runs cases and planted bugs; ``announce`` is told each name before it runs. All ranks call it together."""
    outcomes: list[Outcome] = []
    for name, case in cases.items():
        announce(name)
        torn = next((f"after {outcome.name!r} broke off on some ranks" for outcome in outcomes if outcome.torn), "")
        if reason := case.missing(world) or torn:
            outcomes.append(Outcome(name, case.what, case.seen_by, "not run", reason))
        else:
            outcomes.append(_outcome(name, case, world))
    return outcomes


def _outcome(name: str, case: Case, world: World) -> Outcome:
    began, mine, note = time.perf_counter(), {}, ""
    try:
        mine = measure(case, world)
    except FAILURES as error:
        note = f"{type(error).__name__}: {str(error).strip()}"
        # at once, because the ranks that now wait for this one may be ended before they can tell
        print(f"{name}, rank {world.rank}: {note}", file=sys.stderr, flush=True)
    together = world.gather((mine, note), aside=True)
    seconds, allowed = time.perf_counter() - began, case.allowed(world)
    notes = [f"rank {rank}: {theirs}" for rank, (_, theirs) in enumerate(together) if theirs]
    if notes:
        return Outcome(name, case.what, case.seen_by, "failed", notes[0], {}, allowed, seconds, len(notes) < world.size)
    errors = {key: max((theirs[key] for theirs, _ in together), key=_nan_is_largest) for key in mine}
    if case.seen_by:
        status = "seen" if errors[case.seen_by] > FACTOR * allowed[case.seen_by] else "failed"
    else:
        status = "held" if all(error <= allowed[key] for key, error in errors.items()) else "failed"
    return Outcome(name, case.what, case.seen_by, status, "", errors, allowed, seconds)


def _nan_is_largest(error: float) -> float:
    return math.inf if math.isnan(error) else error


Tensors = dict[str, Tensor]
"""By the plain names of trainable parameters."""


@dataclass(frozen=True)
class Trace:
    """What a training came to."""

    gradients: dict[str, Tensors]
    """What the Surgeon held of every domain in the first step, whole."""
    records: list[Record]
    start: Tensors
    end: Tensors


def measure(case: Case, world: World) -> Errors:
    """The errors of a case as this rank sees them; a collective."""
    spread = case.spread(build_model(case.model, world.dtype, world.device), world)
    plan = replace(case.plan, shards=spread.shards)
    found = follow(spread, plan, world.device)
    right = _alone(case.reference, case.model, Plan(**vars(plan)), world.device)  # without the bug that a plan may have
    conflict = any(record.weights_GD.ne(1).any() for record in right.records)
    assert conflict or plan.domains == 1, "without a conflict nothing but the plain sum is tested"
    kept = [tensor for record in found.records for tensor in (record.weights_GD, record.gram_UDD)]
    pairs = list(zip(found.records, right.records, strict=True))
    return {
        "gradients": max(_distance(found.gradients[domain], right.gradients[domain]) for domain in right.gradients),
        "Grams": gram_error(*pairs[0]),
        "weights": max((mine.weights_GD - other.weights_GD).abs().max().item() for mine, other in pairs),
        "parameters": _distance(found.end, right.end, right.start),
        "copies": _copies_that_differ([*found.end.values(), *kept], world),
    }


@functools.lru_cache(maxsize=16)
def _alone(reference: Callable[[nn.Module], nn.Module], model: ModelSpec, plan: Plan, device: torch.device) -> Trace:
    """What one process with the data of all ranks comes to; cases of one model and one plan share it."""
    return follow(Spread(reference(build_model(model, torch.float64, device)), range(plan.shards)), plan, device)


def follow(spread: Spread, plan: Plan, device: torch.device) -> Trace:
    """Trains with module-wise PCGrad for the plan's steps, clipped, with AdamW; a collective."""
    surgeon = Surgeon(spread.model, "mgs", **spread.surgeon)
    spread.tamper(surgeon)
    named = named_trainable(spread.model)
    start = _whole(named)
    gradients = _probe(spread, plan, surgeon, device)
    # AdamW divides a gradient by its own size, and so turns rounding errors of the smallest into whole steps; eps well
    # above them keeps trajectories comparable. Its loops over many tensors do not take several meshes together.
    optimizer = torch.optim.AdamW(named.values(), lr=3e-3, eps=1e-6, weight_decay=0.1, foreach=False)
    records = []
    for step in range(plan.steps):
        _collect(spread, plan, surgeon, step, device)
        records.append(surgeon.combine())
        # clip_grad_norm_ does not take several meshes either
        norm = torch.stack([gradient.norm() for gradient in _whole(named, gradient=True).values()]).norm().item()
        for parameter in named.values():
            if parameter.grad is not None:
                parameter.grad.mul_(min(1.0, MAX_NORM / (norm + 1e-6)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return Trace(gradients, records, start, _whole(named))


def _collect(spread: Spread, plan: Plan, surgeon: Surgeon, step: int, device: torch.device) -> None:
    """Forward, backward and ``collect`` of this rank's micro-batches of a step."""
    order = plan.order(step, spread.mine)
    # Divided by the mean number of rows per rank, so that the average over ranks is exactly the mean loss of all rows,
    # however unevenly they are dealt. One process that has all rows averages over nobody.
    averaged = spread.shards if len(spread.mine) == 1 else 1
    for domain in order:
        pieces = plan.micro(step, domain, spread.mine, device)
        for i, rows in enumerate(pieces):
            last = i == len(pieces) - 1
            with spread.sync(last):
                (policy_loss(spread.model, *rows) * (averaged / plan.num_rows(step, domain))).backward()
            if spread.collect_each or last:
                surgeon.collect(domain, last=last and domain == order[-1])


class _Pick(Weighting):
    """A weighting that lets one domain through."""

    domain = ""

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        return torch.tensor([[float(name == self.domain) for name in context.domains]] * len(gram_GDD))


def _probe(spread: Spread, plan: Plan, surgeon: Surgeon, device: torch.device) -> dict[str, Tensors]:
    """What the Surgeon holds of every domain in the first step, whole: it gets weight 1, all others 0."""
    usual, pick = surgeon._weighting, _Pick()
    surgeon._weighting = pick
    gradients = {}
    for pick.domain in plan.names(0):
        _collect(spread, plan, surgeon, 0, device)
        surgeon.combine()
        gradients[pick.domain] = _whole(named_trainable(spread.model), gradient=True)
        spread.model.zero_grad(set_to_none=True)
    surgeon._weighting, surgeon.step = usual, 0
    return gradients


def _whole(named: Mapping[str, nn.Parameter], gradient: bool = False) -> Tensors:
    """Copies of all parameters, or of their gradients, gathered where ranks hold parts of them; a collective."""
    found = {}
    for name, parameter in named.items():
        tensor = parameter.grad if gradient else parameter
        tensor = (torch.zeros_like(parameter) if tensor is None else tensor).detach()
        if is_dtensor(tensor):  # offloaded parts are gathered where the mesh's collectives are
            tensor = tensor.to(tensor.device_mesh.device_type).full_tensor()
        found[name] = tensor.clone()
    return found


def _copies_that_differ(tensors: Iterable[Tensor], world: World) -> int:
    """How many tensors two ranks hold, or gather from ranks beside them, in different bits."""
    everybodys = world.gather([tensor.cpu().numpy().tobytes() for tensor in tensors])
    return sum(len(set(bits)) > 1 for bits in zip(*everybodys, strict=True))


def gram_error(found: Record, right: Record) -> float:
    """The largest ``|found - right| / (|g_i| |g_j|)`` over groups of all groupings, and units, and pairs of domains."""
    pairs = [(found.gram_UDD, right.gram_UDD), *((found.regroup(g)[1], right.regroup(g)[1]) for g in GROUPINGS)]
    errors = []
    for gram_GDD, right_GDD in pairs:
        norm_GD = right_GDD.diagonal(dim1=1, dim2=2).sqrt()
        errors.append(((gram_GDD - right_GDD) / (norm_GD[:, :, None] * norm_GD[:, None])).abs().max())
    return torch.stack(errors).max().item()


def _distance(found: Tensors, right: Tensors, origin: Tensors | None = None) -> float:
    """``|found - right| / |right - origin|``, all tensors as one vector; the origin is zero by default."""
    origin = origin or {name: torch.zeros_like(tensor) for name, tensor in right.items()}
    return math.sqrt(_square(found, right) / _square(right, origin))


def _square(first: Tensors, second: Tensors) -> float:
    assert first.keys() == second.keys()
    # offloaded parameters are not where the truth is
    return sum((one.double().cpu() - second[name].double().cpu()).square().sum().item() for name, one in first.items())
