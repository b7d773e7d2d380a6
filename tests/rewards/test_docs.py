"""What docs/rewards.md says of its examples is so, and it names every reward and option."""

import inspect
import re
from pathlib import Path

import pytest

from counterpoint.rewards import REWARDS, build_reward
from counterpoint.rewards._registry import _load

TEXT = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
CLIPS = "Natalia sold 48/2 = 24 clips in May. ...\n#### 72"
DOORS = ["bank", "library", "department store", "mall", "new york"]


@pytest.mark.parametrize(
    ("name", "columns", "completion", "expected"),
    [
        ("math", {"answer": CLIPS}, "48 + 24 = 72", 1),
        ("math", {"answer": CLIPS}, "The answer is $72.00.", 1),
        ("math", {"answer": CLIPS}, r"\boxed{\frac{144}{2}}", 1),
        ("math", {"answer": CLIPS}, "72 clips or 73 clips", 0),
        ("choice", {"answer": "A", "choices": DOORS}, "A", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "(a)", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "A. bank", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "The answer is **A**.", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "A bank, I think.", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "Answer: B. No: Answer: A", 1),
        ("choice", {"answer": "A", "choices": DOORS}, "A or B", 0),
        ("choice", {"answer": "A", "choices": DOORS}, "bank or library", 0),
    ],
)
def test_examples(name: str, columns: dict, completion: str, expected: float) -> None:
    assert f"`{completion}`" in TEXT
    (value,) = build_reward(name)(completions=[completion], **{column: [entry] for column, entry in columns.items()})
    assert value == expected


def test_every_reward_and_option_is_documented() -> None:
    for name, path in REWARDS.items():
        assert f"`{name}`" in TEXT
        for option in inspect.signature(_load(name, path)).parameters:
            assert re.search(rf"`{option}\b", TEXT), f"option {option} of {name}"


def test_checks_that_need_data_are_listed() -> None:
    from counterpoint.rewards._checkers import NLTK_DATA

    for instruction_id in NLTK_DATA:
        assert f"`{instruction_id}`" in TEXT
