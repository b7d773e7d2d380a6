"""Trains the model of a case as a user's loop would, and shows what the Surgeon held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..surgery import Context, Record, Surgeon
from ..surgery._passes.shards import is_dtensor
from .case import Case, Spread
from .data import Plan, policy_loss
from .models import build_model, named_trainable
from .truth import MAX_NORM, Gradients, make_optimizer
from .world import World, whole


@dataclass(frozen=True)
class Trial:
    """A case's model spread over the ranks, with the plan its shards follow."""

    spread: Spread
    plan: Plan
    device: torch.device
    announce: bool = True

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by plain name."""
        return named_trainable(self.spread.model)

    def surgeon(self, strategy: str = "mgs", **options: object) -> Surgeon:
        """A Surgeon for the model, with the options its spread needs."""
        return Surgeon(self.spread.model, strategy, **{**self.spread.surgeon, **options})

    def collect(self, surgeon: Surgeon, step: int) -> None:
        """Forward, backward and ``collect`` of this rank's micro-batches of a step."""
        spread, order = self.spread, self.plan.order(step, self.spread.shard)
        for domain in order:
            scale = spread.shards / len(self.plan.union(step, domain))
            pieces = self.plan.micro(step, domain, spread.shard, self.device)
            for i, rows in enumerate(pieces):
                last = i == len(pieces) - 1
                with spread.sync(last):
                    (policy_loss(spread.model, rows) * scale).backward()
                if spread.collect_each or last:
                    surgeon.collect(domain, last=self.announce and last and domain == order[-1])

    def probe(self) -> tuple[dict[str, Gradients], Record]:
        """What the Surgeon holds of every domain in the first step, whole: it gets weight 1, all others 0."""
        pick = _Pick()
        surgeon = self.surgeon(weighting=pick)
        gradients: dict[str, Gradients] = {}
        for domain in self.plan.names(0):
            pick.domain = domain
            self.collect(surgeon, 0)
            record = surgeon.combine()
            gradients[domain] = {name: _gradient(parameter) for name, parameter in self.parameters.items()}
            self.spread.model.zero_grad(set_to_none=True)
        return gradients, record

    def train(self, surgeon: Surgeon | None = None) -> list[Record]:
        """All steps of the plan, clipped, with AdamW."""
        surgeon = surgeon or self.surgeon()
        parameters = list(self.parameters.values())
        # torch's loops over many tensors at once do not take DTensors of different meshes, or plain tensors, together
        optimizer = make_optimizer(parameters, foreach=None if len(_by_mesh(parameters)) == 1 else False)
        records = []
        for step in range(self.plan.steps):
            self.collect(surgeon, step)
            records.append(surgeon.combine())
            clip(parameters)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return records


def prepare(case: Case, world: World) -> Trial:
    """The case's model spread over the ranks of this world."""
    spread = case.spread(build_model(case.model, world.dtype, world.device), world)
    plan = replace(case.plan, shards=spread.shards, domains=case.plan.domains or world.domains)
    return Trial(spread, plan, world.device, case.announce)


class _Pick:
    """A weighting that lets one domain through."""

    domain = ""

    def __call__(self, gram_GDD: Tensor, context: Context) -> Tensor:
        return torch.tensor([[float(name == self.domain) for name in context.domains]] * len(gram_GDD))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return whole(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).detach().clone()


def clip(parameters: Sequence[nn.Parameter]) -> None:
    """Clips the norm of all gradients together to ``MAX_NORM``, on whatever meshes they lie."""
    kinds = _by_mesh(parameters)
    if len(kinds) == 1:
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        return
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds]
    total = torch.stack(norms).norm()
    for kind in kinds:
        for parameter in kind:
            if parameter.grad is not None:
                parameter.grad.mul_(min(1.0, MAX_NORM / (total.item() + 1e-6)))


def _by_mesh(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    kinds: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.device_mesh if is_dtensor(parameter) else None, []).append(parameter)
    return list(kinds.values())


def local_records(records: Sequence[Record]) -> Mapping[str, Tensor]:
    """Everything in the records that must be the same on all ranks, bit by bit."""
    found = {}
    for record in records:
        found[f"weights of step {record.step}"] = record.weights_GD
        found[f"Grams of step {record.step}"] = record.gram_UDD
    return found
