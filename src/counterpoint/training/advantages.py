"""Advantages normalised inside a domain where TRL would normalise across all of them.

TRL's ``scale_rewards="group"`` and ``"none"`` never look across prompts, so nothing changes there. ``"batch"`` and the
last step of ``multi_objective_aggregation="normalize_then_sum"`` divide by one standard deviation over the whole batch:
a domain with wide rewards (a chat score) would shrink one with narrow rewards (0/1 math). Here the batch means the
domain's batch.

Legend: B rows of the generation batch over all ranks, F reward functions.
"""

from collections.abc import Sequence

import torch

from counterpoint.errors import RewardError
from counterpoint.rewards.values import LARGEST_PART

EPSILON = 1e-4
"""TRL's own constant beside a standard deviation, kept so that one domain alone reproduces TRL."""


def total_rewards(rewards_BF: torch.Tensor, weights_F: torch.Tensor) -> torch.Tensor:
    """Weighted sum of reward functions ``[B]``; NaN where every function returned none."""
    total_B = (rewards_BF * weights_F.to(rewards_BF)).nansum(dim=1)
    return total_B.masked_fill(rewards_BF.isnan().all(dim=1), torch.nan)


def check_size(rewards_BF: torch.Tensor, weights_F: torch.Tensor, names: Sequence[str]) -> None:
    """Refuses rewards whose squares would leave float32: every advantage of their domain would be zero.

    Raises:
        RewardError: a reward times its weight is larger than ``LARGEST_PART``, naming the function.
    """
    largest_F = (rewards_BF * weights_F.to(rewards_BF)).abs().nan_to_num(nan=0.0).amax(dim=0)
    for name, largest in zip(names, largest_F.tolist(), strict=True):
        if largest > LARGEST_PART:
            raise RewardError(
                f"reward {name!r} gives {largest:g} with its weight; it may not exceed {LARGEST_PART:g}. Scale the "
                "reward, or give it a smaller weight."
            )


def nanstd(values_B: torch.Tensor) -> torch.Tensor:
    """Unbiased standard deviation of the finite entries, a 0-d tensor; 0 when there are fewer than two."""
    finite = values_B[~values_B.isnan()]
    return finite.std() if len(finite) > 1 else values_B.new_zeros(())


def rescale_per_domain(
    advantages_B: torch.Tensor, rewards_B: torch.Tensor, domain_B: torch.Tensor, *, normalised_sum: bool
) -> torch.Tensor:
    """Advantages ``[B]`` with the batch's statistics replaced by the domain's.

    Args:
        advantages_B: TRL's advantages, divided by the standard deviation of the whole batch.
        rewards_B: total rewards (NaN where unscorable).
        domain_B: int64 domain ids.
        normalised_sum: True for ``normalize_then_sum``, whose last step also centres over the batch; there the
            advantages themselves are standardised inside the domain.
    """
    scored_B = ~rewards_B.isnan()
    result = torch.zeros_like(advantages_B)
    batch_std = nanstd(rewards_B) + EPSILON
    for domain_id in domain_B.unique():
        own_B = (domain_B == domain_id) & scored_B
        if normalised_sum:
            values = advantages_B[own_B]
            result[own_B] = (values - values.mean()) / (nanstd(values) + EPSILON)
        else:
            result[own_B] = advantages_B[own_B] * batch_std / (nanstd(rewards_B[own_B]) + EPSILON)
    return result
