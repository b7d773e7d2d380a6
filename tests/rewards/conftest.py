"""A way to score one completion with one row, as TRL would call the reward."""

from collections.abc import Callable
from typing import Any

import pytest

from counterpoint.rewards import build_reward


@pytest.fixture(scope="session")
def score() -> Callable[..., float]:
    def score_one(name: str, completion: Any, row: dict[str, Any], **options: Any) -> float:
        columns = {key: [value] for key, value in row.items()}
        reward = build_reward(name, **options)
        (value,) = reward(prompts=["?"], completions=[completion], completion_ids=[[1]], trainer_state=None, **columns)
        return value

    return score_one
