"""The truth: one process that holds all rows, in float64, with everything computed the long way round.

Gradients come from one backward pass over the union of the rows, inner products from whole vectors, and PCGrad is
carried out on the vectors themselves, as in algorithm 1 of the paper. Every rank computes it for itself.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..surgery import GROUPINGS, Context, group_parameters
from ..surgery.weightings.pcgrad import random_orders
from .data import Plan, policy_loss
from .models import ModelSpec, build_model, named_trainable

MAX_NORM = 0.1
"""Small enough that clipping always acts."""

Gradients = dict[str, Tensor]
"""One gradient per trainable parameter, by plain name."""

Vectors = dict[str, Tensor]
"""One flat vector per group."""


@dataclass(frozen=True)
class Trajectory:
    """What training should come to."""

    start: Gradients
    """The parameters before the first step."""
    end: Gradients
    """The parameters after the last step."""
    gradients: dict[str, Gradients]
    """Every domain's gradient in the first step."""
    grams: dict[str, dict[str, Tensor]]
    """For every grouping the Gram [D, D] of every group in the first step, domains sorted by name."""
    weights: list[Tensor]
    """For every step the weights [G, D], modules and domains in the order of the Surgeon."""
    num_conflicts: int
    """How many (step, group, pair) were in conflict: without any, nothing but the plain sum was tested."""


@functools.cache
def truth(spec: ModelSpec, plan: Plan, device: torch.device, compute: torch.dtype | None = None) -> Trajectory:
    """What ``plan.steps`` steps of module-wise PCGrad on the union of all rows come to.

    ``compute``: the dtype of forward and backward, as under a mixed precision policy. Rounding then depends on how the
    rows are cut, so that gradient is the mean of those of the ranks' micro-batches, one by one.
    """
    model = build_model(spec, torch.float64, device)
    parameters = named_trainable(model)
    start = _copy(parameters)
    optimizer = make_optimizer(parameters.values())
    first: dict[str, Gradients] = {}
    weights, num_conflicts = [], 0
    for step in range(plan.steps):
        gradients = {name: domain_gradient(model, plan, step, name, compute) for name in sorted(plan.names(step))}
        first = first or gradients
        grams = brute_grams(gradients, parameters, "module")
        weights.append(_combine(parameters, gradients, grams, step))
        num_conflicts += sum(int((gram < 0).sum()) // 2 for gram in grams.values())
        torch.nn.utils.clip_grad_norm_(parameters.values(), MAX_NORM)
        optimizer.step()
    grams_by_grouping = {grouping: brute_grams(first, start, grouping) for grouping in GROUPINGS}
    return Trajectory(start, _copy(parameters), first, grams_by_grouping, weights, num_conflicts)


def make_optimizer(parameters: Iterable[Tensor], foreach: bool | None = None) -> torch.optim.AdamW:
    """The optimizer of every run of the suite.

    AdamW divides a gradient by its own size, and so turns rounding errors of the smallest gradients into whole steps;
    ``eps`` well above those errors keeps the trajectories comparable.
    """
    return torch.optim.AdamW(list(parameters), lr=3e-3, eps=1e-6, weight_decay=0.1, foreach=foreach)


def domain_gradient(
    model: nn.Module, plan: Plan, step: int, domain: str, compute: torch.dtype | None = None
) -> Gradients:
    """The gradient of the mean loss over all ranks' rows of a domain."""
    parameters = named_trainable(model)
    device = next(iter(parameters.values())).device
    union = plan.union(step, domain, device)
    if compute is None:
        loss = policy_loss(model, union) / len(union)
        found = torch.autograd.grad(loss, list(parameters.values()))
        return dict(zip(parameters, found, strict=True))
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for shard in range(plan.shards):
        for rows in plan.micro(step, domain, shard, device):
            low = {name: p.detach().to(compute).requires_grad_() for name, p in model.named_parameters()}
            # the loss is scaled before backward as in training, where gradients are averaged over ranks afterwards
            loss = policy_loss(_Called(model, low), rows) * (plan.shards / len(union))
            for name, gradient in zip(total, torch.autograd.grad(loss, list(low.values())), strict=True):
                total[name] += gradient.double() / plan.shards
    return total


class _Called(nn.Module):
    """A model with other parameters."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._call = functools.partial(functional_call, model, dict(parameters))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self._call((tokens_BT,))


def brute_grams(gradients: Mapping[str, Gradients], like: Mapping[str, Tensor], grouping: str) -> dict[str, Tensor]:
    """Inner products [D, D] of whole vectors for every group of a grouping, float64 on the CPU."""
    vectors = [group_vectors(gradients[domain], like, grouping) for domain in sorted(gradients)]
    grams = {}
    for group in vectors[0]:
        stacked_DP = torch.stack([v[group] for v in vectors]).double()
        grams[group] = (stacked_DP @ stacked_DP.T).cpu()
    return grams


def group_vectors(gradients: Gradients, like: Mapping[str, Tensor], grouping: str) -> Vectors:
    """Every group's gradient as one vector; ``like`` gives the order of parameters."""
    groups = group_parameters({name: tuple(p.shape) for name, p in like.items()}, grouping)
    pieces: dict[str, list[Tensor]] = {}
    for name, owners in groups.items():
        for owner, piece in zip(owners, gradients[name].reshape(len(owners), -1), strict=True):
            pieces.setdefault(owner, []).append(piece)
    return {group: torch.cat(parts) for group, parts in pieces.items()}


def _combine(
    parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Gradients], grams: Mapping[str, Tensor], step: int
) -> Tensor:
    """Writes the sum of the projected vectors into ``.grad``; the weights [G, D] of the originals in it."""
    domains = tuple(sorted(gradients))
    context = Context(tuple(grams), domains, 0, step)
    vectors = {domain: group_vectors(gradients[domain], parameters, "module") for domain in domains}
    order_GDD = random_orders(context, context.groups).tolist()
    weights_GD, combined = [], {}
    for group, order_DD in zip(grams, order_GDD, strict=True):
        stacked_DP = torch.stack([vectors[domain][group] for domain in domains])
        coefficients_DD = torch.eye(len(domains), dtype=torch.float64)
        projected_DP = stacked_DP.clone()
        for i, others in enumerate(order_DD):
            for j in others:
                inner = (projected_DP[i] @ stacked_DP[j]).item()
                if inner < 0:
                    step_length = inner / (stacked_DP[j] @ stacked_DP[j]).item()
                    projected_DP[i] -= step_length * stacked_DP[j]
                    coefficients_DD[i, j] -= step_length
        combined[group] = projected_DP.sum(0)
        weights_GD.append(coefficients_DD.sum(0))
    _scatter(parameters, combined)
    return torch.stack(weights_GD)


def _scatter(parameters: Mapping[str, nn.Parameter], combined: Vectors) -> None:
    """The inverse of ``group_vectors``, into ``.grad``."""
    groups = group_parameters({name: tuple(p.shape) for name, p in parameters.items()}, "module")
    taken = dict.fromkeys(combined, 0)
    for name, parameter in parameters.items():
        size = parameter.numel() // len(groups[name])
        pieces = []
        for group in groups[name]:
            pieces.append(combined[group][taken[group] : taken[group] + size])
            taken[group] += size
        parameter.grad = torch.cat(pieces).view(parameter.shape)


def _copy(parameters: Mapping[str, Tensor]) -> Gradients:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
