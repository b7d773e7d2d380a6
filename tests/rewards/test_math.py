# ruff: noqa: E501, RUF001 (tables of short cases, with the signs that people type)
"""Reward ``math``: which answers are the same."""

import time
from collections.abc import Callable

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

Score = Callable[..., float]

SAME = [
    ("18", "18"), ("#### 18", "18"), ("\\boxed{18}", "18.0"), ("18.", "18"), ("$18", "18"), ("1,234", "1234"),
    ("The answer is $1,234.50.", "1234.5"), ("50%", "50"), ("\\frac{1}{2}", "0.5"), ("1/2", "\\frac12"), ("-3", "−3"),
    ("so it is 18 dollars", "$18"), ("18 eggs per day", "18"), ("x = 5", "5"), ("2 1/2", "2.5"), ("3 million", "3,000,000"),
    ("1.5e3", "1500"), ("2 \\times 10^{3}", "2000"), ("**42**", "42"), ("\\boxed{\\text{18 cm}}", "18"), ("90^\\circ", "90"),
    ("first 7, then 9", "9"), ("\\boxed{3} or rather \\boxed{4}", "4"), ("<think>7</think>8", "8"), ("<answer>6</answer>", "6"),
    ("Answer: 12 because 3 times 4 is 12, not 13", "12"), ("x^2+2x+1", "(x+1)^2"), ("\\boxed{\\frac{\\sqrt{2}}{2}}", "$\\frac{1}{\\sqrt{2}}$"),
    ("The answer is $(1, 2)$", "(1,2)"), ("2\\sqrt{4}+14", "18"), (".5", "0.5"), ("$\\$18$", "18"), ("-$5", "-5"),
]  # fmt: skip
DIFFERENT = [
    ("18", "19"), ("#### 180", "18"), ("\\boxed{17} and 18", "18"), ("18 #### 17", "18"), ("1,0007", "1000"), ("0.5", "50"),
    ("0.333", "1/3"), ("3x", "3"), ("5 pi", "5"), ("<think>18</think>", "18"), ("<think>18", "18"), ("eighteen", "18"),
    ("x^2+2x", "(x+1)^2"), ("1/0", "0"), ("-18", "18"), ("3 dozen", "3"), ("1e999999", "1"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer"), SAME)
def test_math_accepts(score: Score, completion: str, answer: str) -> None:
    assert score("math", completion, {"answer": answer}) == 1.0


@pytest.mark.parametrize(("completion", "answer"), DIFFERENT)
def test_math_refuses(score: Score, completion: str, answer: str) -> None:
    assert score("math", completion, {"answer": answer}) == 0.0


@pytest.mark.parametrize(
    ("extraction", "right", "wrong"),
    [
        ("gsm8k", "5 + 4\n#### 9", "\\boxed{9}"),
        ("boxed", "\\boxed{9}", "#### 9"),
        ("plain", " 9. ", "it is 9"),
        ("last_number", "8 or 9", "9 or 8"),
    ],
)
def test_math_extractions(score: Score, extraction: str, right: str, wrong: str) -> None:
    assert score("math", right, {"answer": 9}, extraction=extraction) == 1.0
    assert score("math", wrong, {"answer": 9}, extraction=extraction) == 0.0


def test_math_strict_wants_the_answer_alone(score: Score) -> None:
    assert score("math", "$9", {"answer": "9"}, strict=True) == 1.0
    assert score("math", "It is 9", {"answer": "9"}, strict=True) == 0.0
    with pytest.raises(RewardError, match="contradicts extraction='boxed'"):
        build_reward("math", strict=True, extraction="boxed")


def test_math_survives_expressions_that_hang() -> None:
    reward = build_reward("math", timeout=0.5)
    hostile = ["#### 9**9**9**9", "\\boxed{9^{9^{9^{9}}}}", "\\boxed{" + "(" * 120 + "}", "\\boxed{2^{99999999999}}"]
    start = time.monotonic()
    assert reward(completions=hostile, answer=["5"] * 4) == [0.0] * 4
    assert time.monotonic() - start < 15
    # The replaced workers work.
    assert reward(completions=["\\boxed{\\sqrt{16}}"], answer=["4"]) == [1.0]


@pytest.mark.parametrize("completion", ["3 + (", "53 +", "53 (", "(53", "53)", "\\frac{53}{", "53 \\times"])
def test_a_calculation_that_breaks_off_is_worth_nothing(completion):
    reward = build_reward("math", extraction="plain")
    for answer in ("3", "53"):
        assert reward(completions=[completion, f"({answer} + 0) * 1"], answer=[answer] * 2) == [0.0, 1.0]
