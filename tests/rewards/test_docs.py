"""What docs/rewards.md and the pages behind it say of their examples is so, and they name every reward and option."""

import asyncio
import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import FAILED, REWARDS, build_reward
from counterpoint.rewards._registry import load_object

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    page.stem: page.read_text(encoding="utf-8") for page in [DOCS / "rewards.md", *(DOCS / "rewards").glob("*.md")]
}
TEXT = "\n".join(PAGES.values())
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


def test_the_page_leads_to_those_behind_it() -> None:
    for name in PAGES.keys() - {"rewards"}:
        assert f"(rewards/{name}.md" in PAGES["rewards"], name


def test_every_reward_and_option_is_documented() -> None:
    for name, path in REWARDS.items():
        assert f"`{name}`" in TEXT
        for option in inspect.signature(load_object(name, path)).parameters:
            assert re.search(rf"`{option}\b", TEXT), f"option {option} of {name}"


def test_checks_that_need_data_are_listed() -> None:
    from counterpoint.rewards._checkers import NLTK_DATA

    for instruction_id in NLTK_DATA:
        assert f"`{instruction_id}`" in TEXT


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the snippets of "Your own" make together."""
    page = PAGES["rewards"]
    section = page[page.index("## Your own") : page.index("## With plain TRL")] + PAGES["own"]
    (tmp_path / "my_documented_rewards.py").write_text(
        "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_documented_rewards", raising=False)
    return importlib.import_module("my_documented_rewards")


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.usefixtures("own")
def test_own_functions_score_texts_and_messages() -> None:
    polite = build_reward("my_documented_rewards:politeness", bonus=0.5)
    assert polite(completions=["yes please", chat("please"), "no"]) == [0.5, 0.5, 0]


def test_own_async_functions_take_options_and_retry(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    async def ask(text: str) -> float:
        calls.append(text)
        if text == "away" or len(calls) < 3:
            raise ConnectionError
        return 0.75

    async def sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(own, "ask", ask)
    monkeypatch.setattr(own.asyncio, "sleep", sleep)
    service = build_reward("my_documented_rewards:service", tries=4)
    assert inspect.iscoroutinefunction(service)
    found = asyncio.run(service(completions=[chat("there"), "away"]))
    assert found[0] == 0.75
    assert found[1] is FAILED
    assert calls.count("away") == 4


@pytest.mark.usefixtures("own")
def test_own_classes_see_the_prompt_and_the_batch() -> None:
    mentions = build_reward("my_documented_rewards:Mentions")
    rows = {"prompts": ["About a lamp.", "About a sea."], "keywords": [["lamp", "oil"], ["oil", "salt"]]}
    assert mentions(completions=[chat("oil"), chat("oil")], **rows) == [1.0, 0.5]
    assert "row 0: 'keywords' must be a list" in mentions.check_rows([{"keywords": "oil", "prompt": "p"}])[0]
    with pytest.raises(RewardError, match="row 0: reward 'Mentions' needs the column 'keywords'"):
        mentions(completions=["oil"])
    assert build_reward("my_documented_rewards:Shorter")(completions=["abcd", "a", ""]) == [0.0, 0.75, 1.0]
