"""Rewards by name. Each is a TRL reward function, usable with plain TRL or on its own, and none imports torch.

    reward = build_reward("math")
    reward(prompts=["What is 2 + 3?"], completions=["It is 5."], answer=["5"])        # [1.0]

``REWARDS`` lists them; ``docs/rewards.md`` describes each with an example; anything else is named
``package.module:object``.
"""

from counterpoint.rewards._base import FAILED, Reward, Row, completion_text
from counterpoint.rewards._registry import REWARDS, build_reward

__all__ = ["FAILED", "REWARDS", "Reward", "Row", "build_reward", "completion_text"]
