"""Reference answers of public data sets earn 1, corrupted ones 0. Needs the folder named by ``COUNTERPOINT_DATA``.

The suite takes every n-th row; ``COUNTERPOINT_DATA_ALL=1`` takes all.
"""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from counterpoint.rewards import build_reward

DATA = os.environ.get("COUNTERPOINT_DATA", "")
ALL = os.environ.get("COUNTERPOINT_DATA_ALL") == "1"
pytestmark = pytest.mark.skipif(not DATA, reason="COUNTERPOINT_DATA names no folder with the data sets")


def rows(name: str, every: int) -> list[dict[str, Any]]:
    path = Path(DATA) / name
    raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    found = json.loads(raw) if name.endswith(".json") else [json.loads(line) for line in raw.decode().splitlines()]
    return found[:: 1 if ALL else every]


def assert_all(rewards: list[float], expected: float) -> None:
    assert rewards
    assert [index for index, reward in enumerate(rewards) if reward != expected] == []


@pytest.mark.parametrize("name", ["gsm8k_train.jsonl", "gsm8k_test.jsonl"])
def test_gsm8k(name: str) -> None:
    answers = [row["answer"] for row in rows(name, every=5)]
    finals = [answer.rpartition("####")[2].strip() for answer in answers]
    reward = build_reward("math")
    assert_all(reward(completions=answers, answer=answers), 1.0)
    assert_all(reward(completions=[f"So she has \\boxed{{{final}}}." for final in finals], answer=answers), 1.0)
    assert_all(reward(completions=[f"The answer is ${final}." for final in finals], answer=finals), 1.0)
    assert_all(reward(completions=[answer + "7" for answer in answers], answer=answers), 0.0)
    assert_all(reward(completions=["no idea"] * len(answers), answer=answers), 0.0)


@pytest.mark.parametrize(("name", "column"), [("MultiArith.json", "lSolutions"), ("SVAMP.json", "Answer")])
def test_word_problems(name: str, column: str) -> None:
    answers = [row[column] for row in rows(name, every=5)]
    numbers = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    reward = build_reward("math")
    assert_all(reward(completions=[f"That makes {number:.12g} in all." for number in numbers], answer=answers), 1.0)
    assert_all(reward(completions=[f"That makes {number + 1:.12g} in all." for number in numbers], answer=answers), 0.0)


def test_mbpp() -> None:
    problems = rows("mbpp.jsonl", every=25)
    columns = {
        "tests": [row["test_list"] for row in problems],
        "test_setup_code": [row["test_setup_code"] for row in problems],
    }
    reward = build_reward("code")
    assert_all(reward(completions=[row["code"] for row in problems], **columns), 1.0)
    fenced = [f"Here it is:\n```python\n{row['code']}\n```" for row in problems]
    assert_all(reward(completions=fenced, **columns), 1.0)
    assert_all(
        reward(completions=[row["code"].replace("return", "return None #") for row in problems][:5], **_first(columns)),
        0.0,
    )


def _first(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values[:5] for name, values in columns.items()}


def test_humaneval() -> None:
    problems = rows("HumanEval.jsonl.gz", every=8)
    columns = {name: [row[name] for row in problems] for name in ("prompt", "test", "entry_point")}
    reward = build_reward("code")
    assert_all(reward(completions=[row["canonical_solution"] for row in problems], **columns), 1.0)
    whole = [f"```python\n{row['prompt']}{row['canonical_solution']}```" for row in problems]
    assert_all(reward(completions=whole, test=columns["test"], entry_point=columns["entry_point"]), 1.0)
    assert_all(reward(completions=["    return None\n"] * len(problems), **columns), 0.0)


@pytest.mark.parametrize("name", ["commonsenseqa_train.jsonl", "commonsenseqa_dev.jsonl"])
def test_commonsenseqa(name: str) -> None:
    questions = rows(name, every=5)
    choices = [row["question"]["choices"] for row in questions]
    letters = [row["answerKey"] for row in questions]
    texts = [next(c["text"] for c in row["question"]["choices"] if c["label"] == row["answerKey"]) for row in questions]
    wrong = [
        next(c["label"] for c in options if c["text"].strip().lower() != text.strip().lower())
        for options, text in zip(choices, texts, strict=True)
    ]
    reward = build_reward("choice")
    for template in ("{}", "({})", "The answer is {}."):
        assert_all(reward(completions=[template.format(x) for x in letters], answer=letters, choices=choices), 1.0)
        assert_all(reward(completions=[template.format(x) for x in texts], answer=letters, choices=choices), 1.0)
        assert_all(reward(completions=[template.format(x) for x in wrong], answer=letters, choices=choices), 0.0)


@pytest.mark.parametrize(("name", "needing_data"), [("ifeval_prompts.jsonl", 64), ("ifbench_prompts.jsonl", 22)])
def test_instructions(name: str, needing_data: int) -> None:
    pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")
    reward = build_reward("instructions")
    prompts = rows(name, every=1)
    refused = [row for row in prompts if reward.check_rows([row])]
    assert all("NLTK data is not installed" in reward.check_rows([row])[0] for row in refused)
    assert len(refused) in (0, needing_data)
    usable = [row for row in prompts if row not in refused]
    columns = {column: [row[column] for row in usable] for column in ("prompt", "instruction_id_list", "kwargs")}
    rewards = reward(completions=["I am happy to help you with that."] * len(usable), **columns)
    assert all(0.0 <= value <= 1.0 for value in rewards)
    assert 0 < sum(rewards) < len(rewards)
    assert_all(reward(completions=[""] * len(usable), **columns), 0.0)
