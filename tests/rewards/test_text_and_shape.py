# ruff: noqa: E501 (tables of short cases, with the signs that people type)
"""Rewards ``text``, ``length`` and ``format``."""

from collections.abc import Callable

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

Score = Callable[..., float]

ROW = {"answer": ["William Shakespeare", "Shakespeare"]}


@pytest.mark.parametrize(
    ("mode", "completion", "expected"),
    [
        ("exact", "The William Shakespeare!", 1.0), ("exact", "It was Shakespeare.", 0.0), ("contains", "It was Shakespeare.", 1.0),
        ("contains", "Shakespeareans", 0.0), ("f1", "It was Shakespeare.", 0.5), ("f1", "william shakespeare", 1.0), ("f1", "Marlowe", 0.0),
    ],
)  # fmt: skip
def test_text_modes(score: Score, mode: str, completion: str, expected: float) -> None:
    assert score("text", completion, ROW, mode=mode) == pytest.approx(expected)


def test_length_range(score: Score) -> None:
    words = [score("length", "w " * count, {}, minimum=2, maximum=4) for count in range(10)]
    assert words == pytest.approx([0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert [score("length", "w " * count, {}, minimum=2, maximum=4, smooth=False) for count in (1, 2, 5)] == [0, 1, 0]
    assert score("length", "abcde", {}, minimum=5, maximum=5, unit="characters") == 1.0
    with pytest.raises(RewardError, match="minimum or maximum must be set"):
        build_reward("length")


@pytest.mark.parametrize(
    ("completion", "whole", "partial"),
    [
        ("<think>a</think><answer>b</answer>", 1.0, 1.0), ("<think>a</think>b", 0.0, 0.5), ("x<think>a</think><answer>b</answer>", 0.0, 0.75),
        ("<answer>b</answer><think>a</think>", 0.0, 0.75), ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0, 0.5),
        ("<think></think><answer>b</answer>", 0.0, 0.75), ("<think><answer>", 0.0, 0.0),
    ],
)  # fmt: skip
def test_format_tags(score: Score, completion: str, whole: float, partial: float) -> None:
    assert score("format", completion, {}) == whole
    assert score("format", completion, {}, partial=True) == partial
