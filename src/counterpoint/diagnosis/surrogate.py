"""Losses of a domain on fixed completions: deterministic functions of the weights, so gradients and curvature are too.

Legend: B completions, T tokens of a batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from counterpoint.diagnosis.rollouts import TokenBatch

Surrogate = Callable[[Any, TokenBatch, Tensor | None], Tensor]
"""``(model, batch, old_log_probs_BT) -> loss``: a 0-d tensor, a sum over the batch's completion tokens."""


def log_probs(model: Any, batch: TokenBatch) -> Tensor:
    """Log-probability of every token but the first, given those before it: [B, T - 1], float32 or wider."""
    logits = model(input_ids=batch.ids_BT, attention_mask=batch.attention_BT.long()).logits[:, :-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch.ids_BT[:, 1:].unsqueeze(-1)
    return logits.log_softmax(-1).gather(-1, targets).squeeze(-1)


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
