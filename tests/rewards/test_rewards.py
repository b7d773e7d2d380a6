"""Each reward by itself: what earns 1, what earns 0, and what bad data says. All are used in TRL's own form."""

import subprocess
import sys
import time

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import REWARDS, build_reward, completion_text

NONSENSE = [
    "",
    "   ",
    "\x00\ud800",
    "((((",
    "####",
    "\\boxed{",
    "<think>",
    "</think>",
    "```",
    "?!.",
    "\n" * 500,
    "é" * 3000,
]

# One usable row of each reward's columns.
ROWS = {
    "math": {"answer": "12 + 6 = 18\n#### 18"},
    "code": {"tests": ["assert double(2) == 4"]},
    "choice": {"answer": "B", "choices": ["bank", "library", "mall"]},
    "instructions": {
        "instruction_id_list": ["keywords:existence", "length_constraints:number_words"],
        "kwargs": [{"keywords": ["rain"], "num_words": None}, {"relation": "less than", "num_words": 5}],
    },
    "text": {"answer": ["William Shakespeare", "Shakespeare"]},
    "length": {},
    "format": {},
    "pocket": {"task": "math", "answer": "19", "prompt": "12+7="},
}
OPTIONS = {"length": {"minimum": 2, "maximum": 4}}
RIGHT = {
    "math": "So the answer is 18.",
    "code": "```python\ndef double(x):\n    return x + x\n```",
    "choice": "The answer is (B).",
    "instructions": "I like rain.",
    "text": "shakespeare",
    "length": "two words",
    "format": "<think>why</think>\n<answer>so</answer>",
    "pocket": "19",
}


@pytest.fixture(autouse=True)
def _needs_checkers(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None)
    if "instructions" in request.node.name or (name and "instructions" in name.params.values()):
        pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")


def score(name: str, completion: object, row: dict | None = None, **options: object) -> float:
    reward = build_reward(name, **{**OPTIONS.get(name, {}), **options})
    columns = {key: [value] for key, value in (ROWS[name] if row is None else row).items()}
    (value,) = reward(prompts=["?"], completions=[completion], completion_ids=[[1]], trainer_state=None, **columns)
    return value


def test_every_reward_is_tried() -> None:
    elsewhere = {
        "reasoning_gym",
        "judge",
        "reward_model",
        "repetition",
        "copying",
        "same_answer",
    }  # in files of their own
    assert set(ROWS) == set(RIGHT) == set(REWARDS) - elsewhere


@pytest.mark.parametrize("name", ROWS)
def test_right_completion_earns_one(name: str) -> None:
    assert score(name, RIGHT[name]) == 1.0
    assert score(name, [{"role": "assistant", "content": RIGHT[name]}]) == 1.0
    assert build_reward(name, **OPTIONS.get(name, {})).__name__ == name


@pytest.mark.parametrize("name", ROWS)
def test_nonsense_earns_nothing_and_never_raises(name: str) -> None:
    reward = build_reward(
        name,
        **{
            **OPTIONS.get(name, {}),
            **({"minimum": 9000, "smooth": False} | {"maximum": None} if name == "length" else {}),
        },
    )
    columns = {key: [value] * len(NONSENSE) for key, value in ROWS[name].items()}
    rewards = reward(prompts=["?"] * len(NONSENSE), completions=NONSENSE, **columns)
    expected = [0.0] * len(NONSENSE)
    if name == "instructions":
        # One word is fewer than five.
        expected = [0.5 * (text in ("\\boxed{", "é" * 3000)) for text in NONSENSE]
    assert rewards == expected
    assert reward(prompts=[], completions=[], **{key: [] for key in columns}) == []


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("length", "format")])
def test_missing_column_is_named_with_the_row(name: str) -> None:
    with pytest.raises(RewardError, match=r"row 0: .*needs the column '\w+'.*the row has (no columns|prompt)"):
        build_reward(name, **OPTIONS.get(name, {}))(prompts=["?"], completions=["x"])


def test_rewards_import_no_torch() -> None:
    code = (
        "import sys\nfrom counterpoint.rewards import REWARDS, build_reward\n"
        "options = {'length': {'maximum': 3}, 'judge': {'model': 'm'}}\n"
        "import counterpoint.rewards.reward_model\n"
        "for name in set(REWARDS) - {'reasoning_gym', 'reward_model'}:\n"
        "    build_reward(name, **options.get(name, {}))\n"
        "build_reward('math')(completions=['x'], answer=['1'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")
    pytest.importorskip("openai", reason="the extra 'judge' is not installed")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_and_options_get_a_hint() -> None:
    with pytest.raises(RewardError, match="Unknown reward 'maths'; did you mean 'math'"):
        build_reward("maths")
    with pytest.raises(RewardError, match="Reward 'code' has no option 'fractoin'; did you mean 'fraction'"):
        build_reward("code", fractoin=True)
    with pytest.raises(RewardError, match="mode must be one of exact, contains, f1, found 'fuzzy'"):
        build_reward("text", mode="fuzzy")
    with pytest.raises(RewardError, match="there is no module 'no_such_package'"):
        build_reward("no_such_package.rewards:mine")
    with pytest.raises(RewardError, match="'string' has no 'capword'; did you mean 'capwords'"):
        build_reward("string:capword")


def shouting(completions: list[str], loudness: float = 1.0, **_: object) -> list[float]:
    return [loudness * text.isupper() for text in completions]


def test_custom_function_with_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_rewards", sys.modules[__name__])
    reward = build_reward("my_rewards:shouting", loudness=0.5)
    assert reward(completions=["HEY", "hey"], answer=["1", "2"]) == [0.5, 0.0]
    assert reward.__name__ == "shouting"


def test_columns_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(RewardError, match="got 2 completions and 1 values of the column 'answer'"):
        build_reward("math")(completions=["1", "2"], answer=["1"])


def test_check_rows_reports_every_bad_row() -> None:
    problems = build_reward("math").check_rows([{"answer": "1"}, {"question": "?"}, {"answer": None}, {"answer": {}}])
    assert [problem.partition(":")[0] for problem in problems] == ["row 1", "row 2", "row 3"]
    assert "needs the column 'answer', the row has question" in problems[0]


def test_completion_text() -> None:
    chat = [
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {"role": "tool", "content": "b"},
    ]
    assert completion_text(chat) == "a"
    assert completion_text(None) == ""


@pytest.mark.parametrize("name", ["math", "choice", "text", "code", "format"])
def test_endless_replies_are_scored_quickly(name: str) -> None:
    pieces = [
        "\\boxed{",
        "$$ ",
        "\\(",
        "9",
        "1,",
        "```\n",
        "answer is ",
        "<answer>",
        "</think>",
        " ",
        "1/",
        "\\text{",
        "(",
        "x=",
    ]
    replies = [piece * (60_000 // len(piece)) for piece in pieces]
    reward = build_reward(name)
    columns = {key: [value] * len(replies) for key, value in ROWS[name].items()}
    reward(completions=["\\boxed{y}"], **{key: value[:1] for key, value in columns.items()})  # starts workers
    start = time.process_time()
    assert max(reward(completions=replies, **columns)) < 0.1
    assert time.process_time() - start < 5.0
