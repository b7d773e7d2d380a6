# ruff: noqa: E501 (tables of short cases, with the signs that people type)
"""Reward ``choice``: which option a reply chooses."""

from collections.abc import Callable

import pytest

from counterpoint.errors import RewardError

Score = Callable[..., float]

ROW = {"answer": "B", "choices": ["bank", "library", "mall"]}


@pytest.mark.parametrize(
    "completion",
    ["B", "b", "(B)", "B.", "b) library", "B) library", "The answer is B", "The answer is (b).", "Answer: B", "**B**", "B - library",
     "I would say B, since A is wrong. Answer: B", "library", "A library, of course.", "\\boxed{B}", "Option B", "[B]",
     "Answer: A. No wait.\nAnswer: B", "The correct choice is **B**", "The answer is library", "<think>A</think> B"],
)  # fmt: skip
def test_choice_accepts(score: Score, completion: str) -> None:
    assert score("choice", completion, ROW) == 1.0


@pytest.mark.parametrize(
    "completion",
    ["A", "C.", "The answer is (A).", "A or B", "bank or library", "Both A and B", "none", "a book", "Answer: B\nAnswer: C", "D", "Be good"],
)  # fmt: skip
def test_choice_refuses(score: Score, completion: str) -> None:
    assert score("choice", completion, ROW) == 0.0


def test_choice_forms_of_choices_and_answers(score: Score) -> None:
    texts = ["bank", "library", "river bank"]
    forms = [
        texts,
        [{"label": label, "text": text} for label, text in zip("ABC", texts, strict=True)],
        {"label": list("ABC"), "text": texts},
    ]
    for choices in forms:
        for answer in ("C", "river bank", "River bank."):
            assert score("choice", "the river bank", {"answer": answer, "choices": choices}) == 1.0
            assert score("choice", "the bank", {"answer": answer, "choices": choices}) == 0.0
    assert score("choice", "(3)", {"answer": "3", "choices": {"label": ["1", "2", "3"], "text": texts}}) == 1.0
    assert score("choice", "I pick (C)", {"answer": "C"}) == 1.0
    assert score("choice", "bank", {"answer": "A", "choices": ["bank", "bank", "mall"]}) == 1.0
    assert score("choice", "The answer is B", ROW, strict=True) == 0.0
    with pytest.raises(RewardError, match="none of the choices: A, B, C"):
        score("choice", "A", {"answer": "museum", "choices": texts})
