"""One rule for thoughts and answer tags in every reward, and the option that demands the end of the thought."""

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

ROWS = {
    "math": ({}, "7", {"answer": "7"}),
    "choice": ({}, "B", {"answer": "B", "choices": ["x", "y"]}),
    "text": ({}, "seven", {"answer": "seven"}),
    "length": ({"maximum": 3}, "a b c", {}),
    "code": ({}, "def f():\n    return 7\n", {"tests": ["assert f() == 7"]}),
    "instructions": ({}, "rain", {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["rain"]}]}),
    "reasoning_gym": ({}, None, {}),
}
LONG = "one two three four five six seven eight nine ten " * 3


@pytest.fixture(params=ROWS)
def scored(request):
    name = request.param
    options, answer, row = ROWS[name]
    if name == "instructions":
        pytest.importorskip("if_verifiable")
    if name == "reasoning_gym":
        gym = pytest.importorskip("reasoning_gym")
        entry = gym.create_dataset("gcd", size=1, seed=3)[0]
        answer, row = entry["answer"], {"entry": entry}
    columns = {key: [value] for key, value in row.items()}

    def score(text, **more):
        return build_reward(name, **options, **more)(completions=[text.replace("ANSWER", answer)], **columns)[0]

    return score


def test_the_thought_is_left_out(scored):
    assert scored("ANSWER") == 1.0
    assert scored(f"<think>{LONG}</think>\nANSWER") == 1.0
    assert scored(f"{LONG}</think>\nANSWER") == 1.0
    assert scored("<think>x</think><answer>ANSWER</answer>") == 1.0
    assert scored(f"<think>ANSWER</think>{LONG * 2}") < 0.5
    assert scored("<think>a</think><think>\nANSWER") < 0.1
    assert scored(f"<thinking>{LONG}</thinking>\nANSWER") == 1.0
    assert scored(f"[THINK]{LONG}[/THINK]\nANSWER") == 1.0
    assert scored("<Think >\nANSWER") < 0.1
    assert scored(f"<answer>\n<think>{LONG}</think>\nANSWER\n</answer>") == 1.0
    assert scored("<think>\nANSWER") < 0.1


def test_thoughts_under_other_names(scored):
    assert scored('<think lang="en">\nANSWER') < 0.1
    assert scored(f'<think lang="en">{LONG}</think>\nANSWER') == 1.0
    for name in ("reason", "reflection", "scratchpad", "analysis"):
        assert scored(f"<{name}>{LONG}</{name}>\nANSWER") == 1.0
        assert scored(f"<think>{LONG}</think>\n<{name}>{LONG}</{name}><reason>so</reason>\nANSWER") == 1.0
        assert scored(f"<{name}>x</{name}>\nANSWER", closed_thought=True) == 1.0
        assert scored(f"<{name}>\nANSWER") < 0.1


def test_channels(scored):
    thought = f"<|channel|>analysis<|message|>{LONG}<|end|>"
    assert scored(f"{thought}<|start|>assistant<|channel|>final<|message|>ANSWER") == 1.0
    assert scored(f"{thought}<|start|>assistant<|channel|>final <|constrain|>json<|message|>ANSWER<|return|>") == 1.0
    assert scored("<|channel|>final<|message|>ANSWER", closed_thought=True) == 1.0
    assert scored("<|channel|>analysis<|message|>\nANSWER") < 0.1
    assert scored(f"analysis{LONG}assistantfinalANSWER") == 1.0  # decoded without special tokens


@pytest.mark.parametrize("tag", ["final", "final_answer", "solution", "choice"])
def test_tags_around_the_end_of_a_reply(scored, tag):
    assert scored(f"{LONG}<{tag}>ANSWER</{tag}>\n") == 1.0
    tag = tag.title()
    assert scored(f"{LONG}<{tag}>x</{tag}> No: <{tag}>ANSWER</{tag}>") == 1.0


def test_tags_that_a_program_writes():
    program = "def f():\n    return '<analysis>7</analysis>' + '<solution>7</solution>'[10:11]\n"
    row = {"tests": [["assert f() == '<analysis>7</analysis>7'"]]}
    for text in (program, f"Use it as <reason> says:\n```python\n{program}```", f"<reason>x</reason>{program}"):
        assert build_reward("code")(completions=[text], **row) == [1.0]


def test_the_closing_tag_can_be_demanded(scored):
    assert scored("ANSWER", closed_thought=True) < 0.1
    assert scored("so</think>\nANSWER", closed_thought=True) == 1.0


def test_format_of_a_prefilled_thought():
    reward = build_reward("format", prefilled=True)
    texts = ["so\n</think>\n<answer>4</answer>", "<think>so</think><answer>4</answer>", "<answer>4</answer>"]
    assert reward(completions=texts) == [1.0, 1.0, 0.0]


def test_format_of_a_thought_and_a_bare_answer():
    reward = build_reward("format", tags=["think"])
    texts = ["<think>a</think>b", "<think>a</think>", "<think>a<think>b</think></think>c", "a"]
    assert reward(completions=texts) == [1.0, 0.0, 0.0, 0.0]
    with pytest.raises(RewardError, match="tags must be names"):
        build_reward("format", tags=["a b"])


@pytest.mark.parametrize(
    ("mode", "completion", "answer", "value"),
    [
        ("exact", "-3", "3", 0.0),
        ("exact", "3.", "3", 1.0),
        ("exact", "C", "C#", 0.0),
        ("exact", "c++.", "C++", 1.0),
        ("exact", "东京。", "东京", 1.0),
        ("contains", "首都是东京", "东京", 1.0),
        ("contains", "tokyoite", "tokyo", 0.0),
        ("f1", "东京大学", "东京", 2 / 3),
    ],
)
def test_signs_and_scripts_of_texts(mode, completion, answer, value):
    assert build_reward("text", mode=mode)(completions=[completion], answer=[answer]) == [pytest.approx(value)]
