"""Gradients of domains, batch by batch: from a model's policy loss, or from anything else that can tell them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, collate
from counterpoint.diagnosis.surrogate import policy_loss
from counterpoint.errors import CounterpointError, ModelError


class GradientSource(Protocol):
    """Independent, unbiased estimates of each domain's gradient; asked for the same one twice it gives it twice.

    ``shapes`` holds the parameters that have gradients, in model order, ``anatomy`` where they lie.
    """

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""

    @property
    def num_batches(self) -> int:
        """Batches of each domain; no two share a prompt."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameters with gradients."""

    @property
    def anatomy(self) -> Anatomy:
        """Layers and modules of the model."""

    def gradients(self, domain: int, batch: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradients of these parameters on one batch of one domain."""


class PolicyGradients:
    """Policy gradients of a model on fixed completions and advantages, as a ``GradientSource``.

    A batch's gradient is that of ``policy_loss``, a sum over tokens, divided by the number of the batch's completions:
    long completions weigh as many tokens as they have. Any other constant per domain leaves every cosine as it is.
    Prompts whose completions all have one reward are left out: their gradient is zero. ``.grad`` is not touched.

    Args:
        model: a causal language model; its parameters that require gradients take part.
        rollouts: completions by domain.
        num_batches: batches of each domain; prompts are dealt out evenly, so batches share none.
        rows: completions in one backward pass.

    Raises:
        CounterpointError: fewer than two domains, or too few prompts that teach something (says how many are needed).
        ModelError: a model without trainable parameters.
    """

    def __init__(self, model: Any, rollouts: Mapping[str, Rollouts], num_batches: int, rows: int = 32) -> None:
        if len(rollouts) < 2:
            found = ", ".join(rollouts) or "none"
            raise CounterpointError(f"A conflict is between two domains; found {found}. Give completions of more.")
        self.model = model
        self.num_batches = num_batches
        self.rows = rows
        self.domains = tuple(rollouts)
        self._params = dict(model.named_parameters())
        self.shapes = {name: tuple(param.shape) for name, param in self._params.items() if param.requires_grad}
        self.anatomy = Anatomy.of(model)
        if not self.shapes:
            raise ModelError("No parameter of the model requires a gradient. Unfreeze those whose conflicts you want.")
        self._device = self._params[next(iter(self.shapes))].device
        self._batches = [_deal(rollouts[domain], num_batches) for domain in self.domains]
        self.prompts = tuple(sum(len({item.group for item in batch}) for batch in found) for found in self._batches)
        self.completions = tuple(sum(map(len, found)) for found in self._batches)

    def gradients(self, domain: int, batch: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradients of these parameters on one batch, in the parameters' dtype or float32 where that is wider."""
        items = self._batches[domain][batch]
        params = [self._params[name] for name in names]
        total = [
            torch.zeros(p.shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device) for p in params
        ]
        # completions of one length next to each other waste little padding; those at the mean reward add nothing
        live = sorted((item for item in items if item.advantage), key=_length)
        for low in range(0, len(live), self.rows):
            loss = policy_loss(self.model, collate(live[low : low + self.rows], pad_id=0).to(self._device))
            for into, gradient in zip(total, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
                if gradient is not None:
                    into += gradient
        return {name: gradient / len(items) for name, gradient in zip(names, total, strict=True)}


def _length(item: Rollout) -> int:
    return len(item.prompt_ids) + len(item.completion_ids)


def _deal(rollouts: Rollouts, num_batches: int) -> list[list[Rollout]]:
    """Prompts that teach something, dealt out like cards: the counts of two batches differ by one prompt at most."""
    groups: dict[int, list[Rollout]] = {}
    for item in rollouts.items:
        groups.setdefault(item.group, []).append(item)
    useful = [items for items in groups.values() if any(item.advantage for item in items)]
    if len(useful) < num_batches:
        share = len(useful) / max(1, len(groups))
        advice = f"sample about {round(1.2 * num_batches / share)} prompts" if useful else "sample more of them"
        raise CounterpointError(
            f"The domain {rollouts.domain!r} has {len(useful)} prompts whose completions differ in reward (of "
            f"{len(groups)}), and {num_batches} batches that share no prompt need at least {num_batches}. For this "
            f"domain {advice}, or ask for fewer batches."
        )
    return [[item for items in useful[number::num_batches] for item in items] for number in range(num_batches)]
