# ruff: noqa: E501 (tables of cases)
"""``counterpoint score``: every line comes back, in order, with its reward; mistakes are named before anything is scored."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.config import parse_config
from counterpoint.errors import RewardError
from counterpoint.rewards.repeats import repeated
from counterpoint.runs import RunDirectory

GOOD = [
    {"completion": "It is 18.", "answer": "18", "id": "first", "note": "Übung"},
    {"completion": "", "answer": "18"},
    {"completion": None, "answer": "18"},
    {"completion": "\x00 \u2028 nonsense \\boxed{", "answer": "18"},
    {"completion": [{"role": "assistant", "content": "#### 18"}], "answer": "18"},
    {"completion": "half a pair \ud83d", "answer": 18},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], input=stdin)


def message(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, RewardError), result.output
    return str(result.exception)


def test_rows_come_back_in_order_with_rewards(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "out.jsonl"
    result = run("math", source, target)
    assert result.exit_code == 0, result.output
    lines = target.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row.pop("reward") for row in rows] == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert rows == GOOD
    assert "Übung" in lines[0]
    assert "6 rows, mean reward 0.3333" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_code_rows_of_both_forms(tmp_path: Path) -> None:
    rows = [
        {"completion": "def f(x):\n    return x", "tests": ["assert f(1) == 1", "assert f(1) == 2"]},
        {"completion": "    return x\n", "prompt": "def f(x):\n", "test": "def check(c):\n    assert c(2) == 2", "entry_point": "f"},
        {"completion": "", "tests": ["assert f(1) == 1"]},
    ]  # fmt: skip
    target = tmp_path / "out.jsonl"
    result = run("code", write(tmp_path / "in.jsonl", rows), target, "--option", "fraction=true")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["reward"] for line in target.read_text().splitlines()] == [0.5, 1.0, 0.0]


def test_standard_input_and_output() -> None:
    result = run("text", "-", "-", "-o", "mode=contains", stdin='{"completion": "oh yes", "answer": "yes"}\n')
    assert json.loads(result.stdout) == {"completion": "oh yes", "answer": "yes", "reward": 1.0}


def test_empty_file_gives_an_empty_file(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run("math", write(tmp_path / "in.jsonl", []), target).exit_code == 0
    assert target.read_text() == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{oops", r"in.jsonl line 3: cannot be read (not valid JSON"),
        ("", r"in.jsonl line 3: cannot be read (not valid JSON"),
        ("[1]", "in.jsonl line 3 must be a JSON object"),
        ('{"answer": "1"}', "line 3 has no 'completion'; it has answer"),
        ('{"completion": 5, "answer": "1"}', "line 3: 'completion' must be a text, found 5"),
        ('{"completion": "5", "anwser": "1"}', r"line 3: reward 'math' needs the column 'answer', the row has anwser, completion"),
        ('{"completion": "5", "answer": {}}', r"line 3: 'answer' must be a number"),
    ],
)  # fmt: skip
def test_bad_lines_are_named_before_scoring(tmp_path: Path, line: str, expected: str) -> None:
    source = write(tmp_path / "in.jsonl", GOOD[:2])
    source.write_text(source.read_text() + line + "\n" + json.dumps(GOOD[0]) + "\n")
    text = message("math", source, tmp_path / "out.jsonl")
    assert expected in text
    assert "Nothing scored" in text
    assert not (tmp_path / "out.jsonl").exists()


def test_output_is_not_overwritten_unasked(tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", GOOD), tmp_path / "out.jsonl"
    target.write_text("precious")
    assert "is there already" in message("math", source, target)
    assert target.read_text() == "precious"
    assert run("math", source, target, "--force").exit_code == 0
    assert len(target.read_text().splitlines()) == len(GOOD)
    assert "is the input file" in message("math", source, source, "--force")


def test_wrong_names(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", GOOD)
    assert "did you mean 'math'" in message("mth", source, tmp_path / "o")
    assert "--option must be NAME=VALUE, found 'strict'" in message(
        "math", source, tmp_path / "o", "--option", "strict"
    )
    assert "no option 'strick'; did you mean 'strict'" in message("math", source, tmp_path / "o", "-o", "strick=1")
    assert "cannot be read" in message("math", tmp_path / "absent.jsonl", tmp_path / "o")
    assert "there is no directory" in message("math", source, tmp_path / "absent" / "o")


def test_custom_reward_that_returns_rubbish_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rubbish.py").write_text(
        "def short(completions, **_):\n    return [1.0]\ndef text(completions, **_):\n    return ['x' for _ in completions]\n"
        "def none(completions, **_):\n    return [None for _ in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = write(tmp_path / "in.jsonl", GOOD)
    assert "returned 1 values for 6 completions" in message("my_rubbish:short", source, tmp_path / "o")
    assert "returned 'x'" in message("my_rubbish:text", source, tmp_path / "o")
    assert "no rewards" in run("my_rubbish:none", source, tmp_path / "o").output


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A run with two samples of each of two domains."""
    run = RunDirectory.create(tmp_path / "run", parse_config({"domains": {"math": {"source": "pocket"}}}))
    line = {"step": 0, "when": "before", "prompt": "Tell me a tale of a lamp.", "reward": 0.25}
    run.append_samples(
        [
            line | {"domain": "math", "completion": "It is 18.", "reference": "18"},
            line | {"domain": "math", "completion": "It is 19.", "reference": "18"},
            line | {"domain": "chat", "completion": "Tell me a tale of a lamp.", "reference": None},
            line | {"domain": "chat", "completion": "Nobody lit it any more.", "reference": None},
        ]
    )
    run.close()
    return tmp_path / "run"


def test_a_run_and_a_domain_bring_the_options_of_the_reward(tmp_path: Path) -> None:
    math = {"source": "pocket", "reward": {"name": "length", "options": {"maximum": 2}}, "metrics": ["repetition"]}
    run_directory = RunDirectory.create(tmp_path / "run", parse_config({"domains": {"math": math}}))
    line = {"step": 0, "when": "before", "prompt": "1+1=", "reward": 0.25, "reference": "2", "domain": "math"}
    run_directory.append_samples([line | {"completion": "one two three four five"}])
    run_directory.close()
    strict = run("length", tmp_path / "run", "--domain", "math")
    loose = run("length", tmp_path / "run", "--domain", "math", "--option", "maximum=5")
    other = run("copying", tmp_path / "run", "--domain", "math")
    assert "mean reward 0.0000" in strict.output, strict.output
    assert "mean reward 1.0000" in loose.output, loose.output
    assert other.exit_code == 0


def test_the_samples_of_a_run_are_scored_again(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run("math", samples, target, "--domain", "math").exit_code == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["reward"], row["run_reward"], row["answer"]) for row in rows] == [(1.0, 0.25, "18"), (0.0, 0.25, "18")]
    result = run("copying", samples, "--domain", "chat")
    assert "2 rows, mean reward 0.5000\n" in result.output
    assert "needs the column 'answer'" in message("math", samples)
    assert "--domain writing: no row is of it; the rows have chat, math" in message(
        "math", samples, "--domain", "writing"
    )


def test_repeated_calls_tell_how_much_a_reward_disagrees(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_coin.py").write_text(
        "calls = []\ndef coin(completions, cache=None, **_):\n    calls.append(cache)\n"
        "    return [len(calls) % 2, 1, 1, None][: len(completions)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    target = tmp_path / "out.jsonl"
    result = run("my_coin:coin", samples, target, "--repeat", "4", "-o", "cache=kept")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["rewards"] for row in rows] == [[1.0, 0.0, 1.0, 0.0], [1.0] * 4, [1.0] * 4, [None] * 4]
    assert [row["reward"] for row in rows] == [0.5, 1.0, 1.0, None]
    import my_coin  # type: ignore[import-not-found]

    assert my_coin.calls == [None] * 4
    assert {"math", "chat", "all"} <= set(result.output.split())
    assert "4 calls for every of n completions" in result.output


def test_agreement_and_variance_over_prompts() -> None:
    told = repeated([[1.0, 1.0, 0.5], [0.0, 0.0, 0.0], [1.0, None, None], [0.5, 1.0, None]], ["p", "q", "q", "q"])
    assert (told.completions, told.calls, told.unscored) == (4, 12, 3)
    # p: one of three pairs agrees; q: the means of (1, 0), the completion with one call left out
    assert told.agreement is not None
    assert told.agreement.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert told.variance is not None
    assert told.variance.value == pytest.approx((1 / 12 + (0 + 1 / 8) / 2) / 2)
    assert told.mean is not None
    assert told.mean.value == pytest.approx((2.5 / 3 + (0 + 1 + 0.75) / 3) / 2)
    alone = repeated([[1.0], [None]], ["p", "q"])
    assert (alone.agreement, alone.variance, alone.unscored) == (None, None, 1)


def test_repeats_of_a_small_judge_are_unbiased() -> None:
    import random

    draw = random.Random(1)
    told = repeated([[float(draw.random() < 0.3) for _ in range(3)] for _ in range(4000)], range(4000))
    assert told.variance is not None
    assert told.variance.low < 0.21 < told.variance.high
    assert told.agreement is not None
    assert told.agreement.low < 0.58 < told.agreement.high
