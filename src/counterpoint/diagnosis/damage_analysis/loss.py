"""The surrogate loss of a domain as a sum over prompts, its Gauss-Newton term and the Fisher term of the policy.

Legend: P prompts, B completions, T tokens of a batch, V vocabulary, n completion tokens of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from counterpoint.diagnosis.damage_analysis.curvature import Direction, Piece, SumLoss
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, TokenBatch, collate
from counterpoint.diagnosis.surrogate import SURROGATES, log_probs
from counterpoint.errors import CounterpointError, nearest
from counterpoint.progress import Progress, silent

MIN_PROMPTS = 8
"""Fewest prompts with a signal for which intervals are computed."""


BASELINES = ("prompt", "domain")
"""What a reward is compared with: the other completions of its prompt (as in GRPO), or the domain's mean."""


@dataclass(frozen=True)
class Chunk:
    """Completions of one prompt that fit in memory at once; ``informative`` where any has an advantage."""

    prompt: int
    batch: TokenBatch
    old_log_probs_BT: Tensor
    informative: bool


@dataclass(frozen=True)
class TextLoss:
    """A domain's surrogate loss at a model, per token, on fixed completions.

    ``loss`` skips prompts that teach nothing, which are zero at every parameter; their tokens count all the same for
    the policy surrogate, whose unit is a completion token of the domain. ``tokens_P`` counts all completion tokens.
    """

    model: Any
    surrogate: str
    chunks: tuple[Chunk, ...]
    loss: SumLoss
    tokens_P: Tensor

    @property
    def num_informative(self) -> int:
        """Prompts that have a signal."""
        return len({chunk.prompt for chunk in self.chunks if chunk.informative})


def text_loss(
    model: Any,
    rollouts: Rollouts,
    surrogate: str = "policy",
    *,
    batch_size: int = 8,
    min_prompts: int = MIN_PROMPTS,
    on_progress: Progress = silent,
) -> TextLoss:
    """The loss of ``rollouts`` at ``model``, with ratios to the model's log-probabilities as it is now.

    Args:
        model: a causal language model on any device, in evaluation mode, its parameters requiring gradients.
        rollouts: completions of one domain, sampled at this model.
        surrogate: a name in ``SURROGATES``.
        batch_size: completions at once; never of two prompts, as prompts are measured one by one.
        min_prompts: fewest prompts with a signal.
        on_progress: called with pieces done and in total.

    Raises:
        CounterpointError: an unknown surrogate, or too few prompts with a signal.
    """
    if surrogate not in SURROGATES:
        raise CounterpointError(f"There is no surrogate loss {surrogate!r}; {nearest(surrogate, SURROGATES)}")
    check_signal(rollouts, min_prompts)
    groups: dict[int, list[Rollout]] = {}
    for item in rollouts.items:
        groups.setdefault(item.group, []).append(item)
    slices = [
        (prompt, items[low : low + batch_size], any(item.advantage for item in items))
        for prompt, items in enumerate(groups.values())
        for low in range(0, len(items), batch_size)
    ]
    chunks = []
    for done, (prompt, items, informative) in enumerate(slices, 1):
        batch = collate(items, pad_id=0).to(model.device)  # the attention mask hides what stands at pads
        with torch.no_grad():
            chunks.append(Chunk(prompt, batch, log_probs(model, batch), informative))
        on_progress("log-probabilities", done, len(slices))
    tokens_P = torch.tensor([_tokens(items) for items in groups.values()], dtype=torch.float64)
    good_P = torch.tensor([_tokens(i for i in items if i.advantage > 0) for items in groups.values()]).double()
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    pieces = tuple(Piece(chunk.prompt, _closure(model, chunk, surrogate)) for chunk in chunks if chunk.informative)
    units_P = good_P if surrogate == "likelihood" else tokens_P
    return TextLoss(model, surrogate, tuple(chunks), SumLoss(params, pieces, units_P), tokens_P)


def with_baseline(rollouts: Rollouts, baseline: str) -> Rollouts:
    """The completions with advantages over another baseline.

    ``prompt`` keeps GRPO's. ``domain`` takes ``(reward - mean) / std`` over all completions of the domain, so that a
    prompt whose completions are all right, which has nothing to teach and much to lose, counts too.

    Raises:
        CounterpointError: an unknown baseline.
    """
    if baseline not in BASELINES:
        raise CounterpointError(f"There is no baseline {baseline!r}; {nearest(baseline, BASELINES)}")
    if baseline == "prompt":
        return rollouts
    rewards = torch.tensor([item.reward for item in rollouts.items], dtype=torch.float64)
    spread = float(rewards.std(correction=0))
    items = (
        replace(item, advantage=(item.reward - float(rewards.mean())) / spread if spread else 0.0)
        for item in rollouts.items
    )
    return replace(rollouts, items=tuple(items))


def check_signal(rollouts: Rollouts, min_prompts: int = MIN_PROMPTS) -> None:
    """Refuses fewer than ``min_prompts`` prompts whose completions differ in reward."""
    have = rollouts.informative.num_groups
    if have < min_prompts:
        raise CounterpointError(
            f"The domain {rollouts.domain!r} has a signal in {have} of {rollouts.num_groups} prompts, and at least "
            f"{min_prompts} are needed for an interval: a prompt whose completions all have one reward says nothing. "
            "Ask for more with --prompts, or for more completions of each with --samples, or compare rewards with the "
            "domain's mean instead of the prompt's: --baseline domain."
        )


def _tokens(items: Any) -> int:
    return sum(len(item.completion_ids) for item in items)


def _closure(model: Any, chunk: Chunk, surrogate: str) -> Callable[[], Tensor]:
    return lambda: SURROGATES[surrogate](model, chunk.batch, chunk.old_log_probs_BT)


@dataclass(frozen=True)
class LogitCurvature:
    """Sums of each prompt [P] float64, not yet over units, along an edit d: ``d'Gd`` and ``d'Fd``.

    G is the Gauss-Newton matrix of the surrogate: the Hessian that it would have if the logits were linear in the
    weights. F is the Fisher matrix of the policy on the domain's tokens; ``d'Fd`` of a token is the variance, under the
    policy, of the logits' derivative along d, and ``1/2 d'Fd`` the leading term of ``KL(pi_theta || pi_theta+d)``.
    """

    gauss_newton_P: Tensor
    fisher_P: Tensor


def logit_curvature(text: TextLoss, edit: Direction, on_progress: Progress = silent) -> LogitCurvature:
    """Both exactly, from one derivative of the logits along ``edit``; F of all prompts, G of those with a signal."""
    num_prompts = len(text.tokens_P)
    gauss_newton_P, fisher_P = (torch.zeros(num_prompts, dtype=torch.float64) for _ in range(2))
    for done, chunk in enumerate(text.chunks, 1):
        logits_BTV, change_BTV = logits_along(text.model, text.loss.params, chunk.batch, edit)
        mask_BT = chunk.batch.completion_BT[:, 1:]
        fisher_P[chunk.prompt] += fisher_form(logits_BTV[:, :-1][mask_BT], change_BTV[:, :-1][mask_BT]).cpu()
        if chunk.informative:
            gauss_newton_P[chunk.prompt] += _gauss_newton(text.surrogate, chunk, logits_BTV, change_BTV)
        on_progress("Gauss-Newton and Fisher", done, len(text.chunks))
    return LogitCurvature(gauss_newton_P, fisher_P)


def logits_along(model: Any, params: Direction, batch: TokenBatch, edit: Direction) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and their derivative ``J d`` along ``edit``, both without a graph.

    ``J d`` is the derivative by u of ``d . (J' u)``: two backward passes, which every model that has curvature
    supports, where forward mode asks the model for more.
    """
    logits_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT.long()).logits
    dummy_BTV = torch.zeros_like(logits_BTV, requires_grad=True)
    names = [name for name in params if name in edit]
    gradient = torch.autograd.grad(
        logits_BTV, [params[name] for name in names], dummy_BTV, create_graph=True, materialize_grads=True
    )
    used = [(g, edit[name]) for g, name in zip(gradient, names, strict=True) if g.requires_grad]
    if not used:
        return logits_BTV.detach(), torch.zeros_like(logits_BTV)
    outputs, directions = zip(*used, strict=True)
    (change_BTV,) = torch.autograd.grad(outputs, dummy_BTV, directions)
    return logits_BTV.detach(), change_BTV


def fisher_form(logits_nV: Tensor, change_nV: Tensor) -> Tensor:
    """The variance of ``change`` under the softmax of ``logits``, summed over rows: 0-d float64."""
    probs_nV = logits_nV.double().softmax(-1)
    change_nV = change_nV.double()
    centred_nV = change_nV - (probs_nV * change_nV).sum(-1, keepdim=True)
    return (probs_nV * centred_nV**2).sum()


def _gauss_newton(surrogate: str, chunk: Chunk, logits_BTV: Tensor, change_BTV: Tensor) -> float:
    """The second derivative of the surrogate of the linearised model, whose logits are ``logits + t change``."""
    t = torch.zeros((), dtype=logits_BTV.dtype, device=logits_BTV.device, requires_grad=True)

    def linearised(input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits_BTV + t * change_BTV)

    loss = SURROGATES[surrogate](linearised, chunk.batch, chunk.old_log_probs_BT)
    (slope,) = torch.autograd.grad(loss, t, create_graph=True)
    (bend,) = torch.autograd.grad(slope, t)
    return float(bend)
