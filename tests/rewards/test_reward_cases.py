"""Every row of the public cases (needs COUNTERPOINT_DATA): the right verdict, or a choice that is named here."""

import json
import os
import re
from pathlib import Path

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

DATA = Path(os.environ.get("COUNTERPOINT_DATA", "/nowhere"))
FILE = DATA / "reward_cases.jsonl"

# Where the product decides otherwise; docs/rewards.md and docs/rewards/ have the same list in words.
CHOICES = {
    "math-none3": "the last number of a reply is its answer where nothing else is marked",
    "mv-test_all::test_complex_math_expressions[7]": "a rounded decimal (0.33) is no fraction (1/3)",
    "mv-test_all::test_complex_math_expressions[13]": "a rounded decimal (2.6667) is no fraction (8/3)",
    "mv-test_all::test_latex_notation[5]": "a line break inside $ $ does not unmake an answer",
    "mv-test_numina_cases::test_numina_cases[24]": "the reference does not close its box; -1 is only its last number",
    "mv-test_yujianll::test_string_extraction[9]": "1 + 1/e is not 1 - 1/e, which the suite lets pass",
    "reasoning_gym-spell_backward-answer tag in the thought only": "the task gives a little to any text",
    "code-t7": "refused: a test that catches the program's own class of errors",
    "code-t14": "a test cannot pass objects of its own to the program",
    "code-t17": "a million numbers cross from one process to the other, which may take longer than a program's time",
    "code-t20": "objects of the program have no arithmetic on the tests' side",
    "code-t21": "refused: isinstance with the program's class",
    "code-t23": "refused: the sandbox has the standard library only",
    "code-t28": "refused: a test cannot pass a function to the program",
    "code-t29": "files of the tests are not the program's",
    "code-t44": "objects of the program have no order on the tests' side",
}


def _cases() -> list[dict]:
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


def _entry(text: str) -> dict:
    gym = pytest.importorskip("reasoning_gym")
    made = re.fullmatch(r"reasoning_gym\.create_dataset\('(\w+)',size=(\d+),seed=(\d+)\)\[(\d+)\]", text)
    return gym.create_dataset(made[1], size=int(made[2]), seed=int(made[3]))[int(made[4])]


def _verdict(case: dict) -> float | str | None:
    columns = {name: [value] for name, value in case["columns"].items()}
    if case["reward"] == "reasoning_gym":
        columns = {"entry": [_entry(case["columns"]["entry"])]}
    try:
        reward = build_reward(case["reward"], **case["options"])
        return reward(prompts=["?"], completions=[case["completion"]], **columns)[0]
    except RewardError as error:
        return str(error)


@pytest.mark.skipif(not FILE.exists(), reason="COUNTERPOINT_DATA does not hold reward_cases.jsonl")
@pytest.mark.parametrize("case", _cases(), ids=lambda case: case["id"])
def test_verdict(case: dict) -> None:
    if case["reward"] == "instructions":
        pytest.importorskip("if_verifiable")
    verdict = _verdict(case)
    if case["id"] not in CHOICES:
        assert verdict in case["right"]


@pytest.mark.skipif(not FILE.exists(), reason="COUNTERPOINT_DATA does not hold reward_cases.jsonl")
def test_every_choice_is_of_a_case() -> None:
    assert CHOICES.keys() <= {case["id"] for case in _cases()}
