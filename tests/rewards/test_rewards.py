# ruff: noqa: E501, RUF001 (tables of short cases, with the signs that people type)
"""Each reward by itself: what earns 1, what earns 0, and what bad data says. All are used in TRL's own form."""

import random
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


# --- what all rewards share ---


def test_every_reward_is_tried() -> None:
    assert set(ROWS) == set(RIGHT) == set(REWARDS) - {"reasoning_gym"}  # an extra, tested with its domain source


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
        "for name in set(REWARDS) - {'reasoning_gym'}:\n    build_reward(name, **({'maximum': 3} if name == 'length' else {}))\n"
        "build_reward('math')(completions=['x'], answer=['1'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_and_options_get_a_hint() -> None:
    with pytest.raises(RewardError, match="Unknown reward 'maths'; did you mean 'math'"):
        build_reward("maths")
    with pytest.raises(RewardError, match="Reward 'code' has no option 'fractoin'; did you mean 'fraction'"):
        build_reward("code", fractoin=True)
    with pytest.raises(RewardError, match="mode must be one of exact, contains, f1, found 'fuzzy'"):
        build_reward("text", mode="fuzzy")
    with pytest.raises(RewardError, match="No module named 'no_such_package'"):
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


# --- math ---

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
def test_math_accepts(completion: str, answer: str) -> None:
    assert score("math", completion, {"answer": answer}) == 1.0


@pytest.mark.parametrize(("completion", "answer"), DIFFERENT)
def test_math_refuses(completion: str, answer: str) -> None:
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
def test_math_extractions(extraction: str, right: str, wrong: str) -> None:
    assert score("math", right, {"answer": 9}, extraction=extraction) == 1.0
    assert score("math", wrong, {"answer": 9}, extraction=extraction) == 0.0


def test_math_strict_wants_the_answer_alone() -> None:
    assert score("math", "$9", {"answer": "9"}, strict=True) == 1.0
    assert score("math", "It is 9", {"answer": "9"}, strict=True) == 0.0
    with pytest.raises(RewardError, match="contradicts extraction='boxed'"):
        build_reward("math", strict=True, extraction="boxed")


def test_math_survives_expressions_that_hang() -> None:
    from counterpoint.rewards import _verify_pool

    reward = build_reward("math", timeout=0.5)
    hostile = ["#### 9**9**9**9", "\\boxed{9^{9^{9^{9}}}}", "\\boxed{" + "(" * 120 + "}", "\\boxed{2^{99999999999}}"]
    start = time.monotonic()
    assert reward(completions=hostile, answer=["5"] * 4) == [0.0] * 4
    assert time.monotonic() - start < 15
    # The replaced workers work.
    assert reward(completions=["\\boxed{\\sqrt{16}}"], answer=["4"]) == [1.0]
    assert _verify_pool._pool().size >= 1


# --- code ---

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
def test_code_in_humaneval_form(completion: str) -> None:
    row = {"prompt": HEADER, "test": CHECK, "entry_point": "double"}
    assert score("code", completion, row) == 1.0
    assert score("code", completion.replace("2", "3").replace("+", "-"), row) == 0.0


def test_code_fraction_and_setup() -> None:
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
def test_code_refuses_bad_rows(row: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score("code", "x", row)


# --- choice ---


@pytest.mark.parametrize(
    "completion",
    ["B", "b", "(B)", "B.", "b) library", "B) library", "The answer is B", "The answer is (b).", "Answer: B", "**B**", "B - library",
     "I would say B, since A is wrong. Answer: B", "library", "A library, of course.", "\\boxed{B}", "Option B", "[B]",
     "Answer: A. No wait.\nAnswer: B", "The correct choice is **B**", "The answer is library", "<think>A</think> B"],
)  # fmt: skip
def test_choice_accepts(completion: str) -> None:
    assert score("choice", completion) == 1.0


@pytest.mark.parametrize(
    "completion",
    ["A", "C.", "The answer is (A).", "A or B", "bank or library", "Both A and B", "none", "a book", "Answer: B\nAnswer: C", "D", "Be good"],
)  # fmt: skip
def test_choice_refuses(completion: str) -> None:
    assert score("choice", completion) == 0.0


def test_choice_forms_of_choices_and_answers() -> None:
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
    assert score("choice", "The answer is B", strict=True) == 0.0
    with pytest.raises(RewardError, match="none of the choices: A, B, C"):
        score("choice", "A", {"answer": "museum", "choices": texts})


# --- instructions ---


def test_instructions_fraction_all_and_null_arguments() -> None:
    long = "I like rain and all that comes with it"
    assert score("instructions", long) == 0.5
    assert score("instructions", long, mode="all") == 0.0
    assert score("instructions", "I like sun and all that comes with it") == 0.0


def test_instructions_loose_counts_what_a_first_line_spoils() -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}
    assert score("instructions", "Sure, here:\nno commas", row) == 0.0
    assert score("instructions", "Sure, here:\nno commas", row, loose=True) == 1.0


def test_instructions_leave_the_random_state_alone() -> None:
    row = {"instruction_id_list": ["count:numbers", "language:response_language"], "kwargs": [{}, {"language": "de"}]}
    random.seed(5)
    state = random.getstate()
    scores = {score("instructions", "Das ist ein deutscher Satz mit 3 Worten", row) for _ in range(5)}
    assert random.getstate() == state
    assert len(scores) == 1


def test_instructions_refuse_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from counterpoint.rewards import instructions

    with pytest.raises(
        RewardError, match="unknown instruction 'punctuation:no_coma'; did you mean 'punctuation:no_comma'"
    ):
        score("instructions", "x", {"instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]})
    with pytest.raises(RewardError, match="'kwargs' of punctuation:no_comma cannot be used"):
        score("instructions", "x", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"words": 3}]})
    monkeypatch.setattr(instructions, "missing_data", lambda id: ("punkt_tab",) if "sentences" in id else ())
    row = {
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"num_sentences": 2, "relation": "at least"}],
    }
    (problem,) = build_reward("instructions").check_rows([row])
    assert "length_constraints:number_sentences needs punkt_tab" in problem
    assert "python -m nltk.downloader punkt_tab" in problem


def test_instructions_import_is_quiet_and_offline() -> None:
    code = (
        "import socket, sys\nsocket.socket.connect = lambda *a: sys.exit('network')\nimport nltk\nbefore = nltk.download\n"
        "from counterpoint.rewards import build_reward\nbuild_reward('instructions')\nassert nltk.download is before"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- text, length, format ---


@pytest.mark.parametrize(
    ("mode", "completion", "expected"),
    [
        ("exact", "The William Shakespeare!", 1.0), ("exact", "It was Shakespeare.", 0.0), ("contains", "It was Shakespeare.", 1.0),
        ("contains", "Shakespeareans", 0.0), ("f1", "It was Shakespeare.", 0.5), ("f1", "william shakespeare", 1.0), ("f1", "Marlowe", 0.0),
    ],
)  # fmt: skip
def test_text_modes(mode: str, completion: str, expected: float) -> None:
    assert score("text", completion, mode=mode) == pytest.approx(expected)


def test_length_range() -> None:
    words = [score("length", "w " * count) for count in range(10)]
    assert words == pytest.approx([0, 0.5, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])
    assert [score("length", "w " * count, smooth=False) for count in (1, 2, 5)] == [0, 1, 0]
    assert score("length", "abcde", minimum=5, maximum=5, unit="characters") == 1.0
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
def test_format_tags(completion: str, whole: float, partial: float) -> None:
    assert score("format", completion) == whole
    assert score("format", completion, partial=True) == partial
