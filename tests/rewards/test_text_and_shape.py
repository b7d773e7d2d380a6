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


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("3 14", "3.14", 0.0), ("3.14.", "3.14", 1.0), ("314", "3.14", 0.0), (".5", "5", 0.0), ("-.5", "-5", 0.0), ("- .5", "-.5", 0.0), ("-.5", "-.5", 1.0),
        ("1,000", "1000", 1.0), ("$1,234,567.50", "1234567.5", 0.0), ("1,234,567.5", "1234567.5", 1.0), ("1,2", "12", 0.0), ("1,000,2", "1000 2", 0.0), ("0,125", "0125", 0.0),
        ("in 1999,000", "in 1999000", 0.0), ("U.S.A.", "USA", 1.0), ("the U.S.", "US", 1.0), ("U.S", "US", 1.0), ("5 p.m.", "5pm", 0.0), ("5 p.m.", "5 pm", 1.0),
        ("J.R.R. Tolkien", "J. R. R. Tolkien", 1.0), ("JRR Tolkien", "J.R.R. Tolkien", 1.0), ("George W. Bush", "George W Bush", 1.0),
        ("Vitamin C. A vitamin.", "vitamin c vitamin", 1.0), ("12.05.2020", "12/05/2020", 1.0), ("yes.no", "yes no", 1.0), ("É.U.", "ÉU", 1.0),
    ],
)  # fmt: skip
def test_points_and_commas(score: Score, completion: str, answer: str, expected: float) -> None:
    assert score("text", completion, {"answer": answer}) == expected


def test_a_number_is_one_word(score: Score) -> None:
    assert score("text", "About 3.14, they say.", {"answer": "3.14"}, mode="contains") == 1.0
    assert score("text", "About 3.14.", {"answer": "14"}, mode="contains") == 0.0
    assert score("text", "It cost 1,000, they say.", {"answer": "1000"}, mode="contains") == 1.0


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
