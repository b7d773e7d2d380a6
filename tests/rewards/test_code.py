"""Reward ``code``: which text is the program, and which tests decide."""

from collections.abc import Callable

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

Score = Callable[..., float]

HEADER = 'def double(x):\n    """Twice x."""\n'
CHECK = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n"


@pytest.mark.parametrize(
    "completion",
    [
        "    return 2 * x\n",
        "return 2 * x",
        "def double(x):\n    return 2 * x\n",
        "Sure:\n```python\ndef double(x):\n    return 2 * x\n```\nUse it so:\n```python\nprint(double(2))\n```",
        "```\n    return x + x\n```",
        "<think>```python\ndef double(x): return 3\n```</think>```py\ndef double(x): return x * 2\n```",
        "```python\ndef double(x):\r\n    return 2 * x",
    ],
)
def test_code_in_humaneval_form(score: Score, completion: str) -> None:
    row = {"prompt": HEADER, "test": CHECK, "entry_point": "double"}
    assert score("code", completion, row) == 1.0
    assert score("code", completion.replace("2", "3").replace("+", "-"), row) == 0.0


def test_code_fraction_and_setup(score: Score) -> None:
    row = {
        "tests": ["assert double(1) == 2", "assert double(1) == one + one", "assert double(1) == 3"],
        "test_setup_code": "one = 1",
    }
    assert score("code", "def double(x):\n    return 2 * x", row) == 0.0
    assert score("code", "def double(x):\n    return 2 * x", row, fraction=True) == pytest.approx(2 / 3)
    assert (
        score(
            "code",
            "def double(x):\n    return math.floor(2 * x)",
            {"tests": ["assert double(1) == 2"], "setup": "import math"},
        )
        == 1.0
    )


def test_code_prompt_of_trl_is_used_on_request() -> None:
    for prompt in (HEADER, [{"role": "user", "content": HEADER}]):
        reward = build_reward("code", prepend_prompt=True)
        assert reward(prompts=[prompt], completions=["    return 2 * x"], tests=[["assert double(2) == 4"]]) == [1.0]
    assert build_reward("code")(
        prompts=[HEADER], completions=["    return 2 * x"], tests=[["assert double(2) == 4"]]
    ) == [0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": "assert f() == 1"}, "'tests' must be a list of assert lines"),
        ({"tests": ["assert f( == 1"]}, "test 0 is no Python"),
        ({"tests": []}, "'tests' must be a list"),
        ({"test": CHECK}, "needs the column 'tests', or 'test' and 'entry_point'"),
    ],
)
def test_code_refuses_bad_rows(score: Score, row: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score("code", "x", row)
