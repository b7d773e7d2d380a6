"""Losses of a domain on fixed completions: deterministic functions of the weights, so gradients and curvature are too.

Legend: P prompts, B completions, T tokens of a batch, V vocabulary, n completion tokens of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from counterpoint.diagnosis._contributions import wide
from counterpoint.diagnosis._curvature import Piece, SumLoss, Vector
from counterpoint.diagnosis.rollouts import Rollouts, TokenBatch, collate
from counterpoint.errors import CounterpointError
from counterpoint.progress import Progress, silent

Surrogate = Callable[[Any, TokenBatch, Tensor | None], Tensor]
"""``(model, batch, old_log_probs_BT) -> loss``: a 0-d tensor, a sum over the batch's completion tokens."""

BASELINES = ("prompt", "domain")
"""What a reward is compared with: the other completions of its prompt (as in GRPO), or the domain's mean."""

MIN_PROMPTS = 8
"""Fewest prompts with a signal for which intervals are computed."""


def log_probs(model: Any, batch: TokenBatch) -> Tensor:
    """Log-probability of every token but the first, given those before it: [B, T - 1], float32 or wider."""
    logits = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT.long()).logits[:, :-1]
    targets = batch.ids_BT[:, 1:].unsqueeze(-1)
    return wide(logits).log_softmax(-1).gather(-1, targets).squeeze(-1)


def policy_loss(model: Any, batch: TokenBatch, old_log_probs_BT: Tensor | None = None) -> Tensor:
    """``- sum over tokens of advantage * pi(token) / pi_old(token)``: the policy-gradient surrogate, not clipped.

    Where ``old_log_probs_BT`` is None the policy is its own reference (ratio 1), and the gradient is the policy
    gradient at this model. Elsewhere it is the importance-weighted estimate, token by token, of how much worse the
    domain's expected advantage became.
    """
    new_BT = log_probs(model, batch)
    old_BT = new_BT.detach() if old_log_probs_BT is None else old_log_probs_BT
    mask_BT = batch.completion_BT[:, 1:]
    ratio_BT = torch.where(mask_BT, new_BT - old_BT, 0).exp()
    return -(ratio_BT * batch.advantage_B.to(ratio_BT).unsqueeze(1) * mask_BT).sum()


def likelihood_loss(model: Any, batch: TokenBatch, old_log_probs_BT: Tensor | None = None) -> Tensor:
    """``- sum over tokens of log pi(token)`` over completions with a positive advantage: forgetting what was right."""
    good_B = (batch.advantage_B > 0).unsqueeze(1)
    return -(log_probs(model, batch) * (batch.completion_BT[:, 1:] & good_B)).sum()


SURROGATES: dict[str, Surrogate] = {"policy": policy_loss, "likelihood": likelihood_loss}
"""The surrogate losses by name."""


@dataclass(frozen=True)
class Chunk:
    """Completions of one prompt that fit in memory at once."""

    prompt: int
    batch: TokenBatch
    old_log_probs_BT: Tensor


@dataclass(frozen=True)
class TextLoss:
    """A domain's surrogate loss at a model, per token, on fixed completions.

    ``loss`` skips prompts that teach nothing, which are zero at every parameter; their tokens count all the same for
    the policy surrogate, whose unit is a completion token of the domain. ``tokens_P`` counts all completion tokens,
    ``informative`` the prompts that have a signal.
    """

    model: Any
    chunks: tuple[Chunk, ...]
    loss: SumLoss
    tokens_P: Tensor
    informative: int


def text_loss(
    model: Any,
    rollouts: Rollouts,
    surrogate: str = "policy",
    *,
    batch_size: int = 8,
    on_progress: Progress = silent,
) -> TextLoss:
    """The loss of ``rollouts`` at ``model``, with ratios to the model's log-probabilities as it is now.

    ``batch_size`` completions are measured at once, never of two prompts. Refuses too few prompts with a signal.
    """
    informative = check_signal(rollouts)
    groups = rollouts.groups
    slices = [
        (prompt, items[low : low + batch_size])
        for prompt, items in enumerate(groups)
        for low in range(0, len(items), batch_size)
    ]
    chunks = []
    for done, (prompt, items) in enumerate(slices, 1):
        batch = collate(items, pad_id=0).to(model.device)  # the attention mask hides what stands at pads
        with torch.no_grad():
            chunks.append(Chunk(prompt, batch, log_probs(model, batch)))
        on_progress("log-probabilities", done, len(slices))
    with_signal = {p for p, items in enumerate(groups) if any(item.advantage for item in items)}
    pieces = tuple(
        Piece(chunk.prompt, _closure(model, chunk, surrogate)) for chunk in chunks if chunk.prompt in with_signal
    )
    tokens_P = torch.tensor([_tokens(items) for items in groups], dtype=torch.float64)
    good_P = torch.tensor([_tokens(i for i in items if i.advantage > 0) for items in groups]).double()
    params = {name: param for name, param in model.named_parameters() if param.requires_grad}
    loss = SumLoss(params, pieces, good_P if surrogate == "likelihood" else tokens_P)
    return TextLoss(model, tuple(chunks), loss, tokens_P, informative)


def with_baseline(rollouts: Rollouts, baseline: str) -> Rollouts:
    """The completions with advantages over another baseline.

    ``prompt`` keeps GRPO's. ``domain`` takes ``(reward - mean) / std`` over all completions of the domain, so that a
    prompt whose completions are all right, which has nothing to teach and much to lose, counts too. In a solved domain
    every completion has the advantage 1.
    """
    if baseline == "prompt":
        return rollouts
    if is_solved(rollouts):
        return replace(rollouts, items=tuple(replace(item, advantage=1.0) for item in rollouts.items))
    rewards = torch.tensor([item.reward for item in rollouts.items], dtype=torch.float64)
    spread = float(rewards.std(correction=0))
    items = (
        replace(item, advantage=(item.reward - float(rewards.mean())) / spread if spread else 0.0)
        for item in rollouts.items
    )
    return replace(rollouts, items=tuple(items))


def is_solved(rollouts: Rollouts) -> bool:
    """Whether all completions have one reward above 0: none is worse than the mean, and all can be lost."""
    rewards = {item.reward for item in rollouts.items}
    return len(rewards) == 1 and min(rewards) > 0


def check_signal(rollouts: Rollouts) -> int:
    """The number of prompts with a completion whose advantage is not zero; refuses fewer than ``MIN_PROMPTS``."""
    have = rollouts.informative.num_groups
    if have < MIN_PROMPTS:
        raise CounterpointError(
            f"The domain {rollouts.domain!r} has a signal in {have} of {rollouts.num_groups} prompts, and at least "
            f"{MIN_PROMPTS} are needed for an interval: completions that all have one reward say nothing. Ask for more "
            "prompts or more samples of each. With baseline='prompt', compare with the domain instead: "
            "baseline='domain'."
        )
    return have


def _tokens(items: Any) -> int:
    return sum(len(item.completion_ids) for item in items)


def _closure(model: Any, chunk: Chunk, surrogate: str) -> Callable[[], Tensor]:
    return lambda: SURROGATES[surrogate](model, chunk.batch, chunk.old_log_probs_BT)


def fisher_along(text: TextLoss, edit: Vector, on_progress: Progress = silent) -> Tensor:
    """``d'Fd`` of every prompt [P], not yet over tokens; F is the Fisher matrix of the policy on the domain's tokens.

    Of a token it is the variance, under the policy, of the logits' derivative along d, and ``1/2 d'Fd`` the leading
    term of ``KL(pi_theta || pi_theta+d)``. Exact, from one derivative of the logits.
    """
    fisher_P = torch.zeros(len(text.tokens_P), dtype=torch.float64)
    for done, chunk in enumerate(text.chunks, 1):
        logits_BTV, change_BTV = logits_along(text.model, text.loss.params, chunk.batch, edit)
        mask_BT = chunk.batch.completion_BT[:, 1:]
        fisher_P[chunk.prompt] += fisher_form(logits_BTV[:, :-1][mask_BT], change_BTV[:, :-1][mask_BT]).cpu()
        on_progress("Fisher", done, len(text.chunks))
    return fisher_P


def logits_along(model: Any, params: Vector, batch: TokenBatch, edit: Vector) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] and their derivative ``J d`` along ``edit``, both without a graph.

    ``J d`` is the derivative by u of ``d . (J' u)``: two backward passes, where forward mode asks the model for more.
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
