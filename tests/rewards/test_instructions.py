# ruff: noqa: E501 (tables of short cases, with the signs that people type)
"""Reward ``instructions``: fractions, refusals, and no side effects."""

import random
import subprocess
import sys
from collections.abc import Callable

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward

Score = Callable[..., float]

pytest.importorskip("if_verifiable", reason="the extra 'instructions' is not installed")

ROW = {
    "instruction_id_list": ["keywords:existence", "length_constraints:number_words"],
    "kwargs": [{"keywords": ["rain"], "num_words": None}, {"relation": "less than", "num_words": 5}],
}


def test_instructions_fraction_all_and_null_arguments(score: Score) -> None:
    long = "I like rain and all that comes with it"
    assert score("instructions", long, ROW) == 0.5
    assert score("instructions", long, ROW, mode="all") == 0.0
    assert score("instructions", "I like sun and all that comes with it", ROW) == 0.0


def test_instructions_loose_counts_what_a_first_line_spoils(score: Score) -> None:
    row = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [None]}
    assert score("instructions", "Sure, here:\nno commas", row) == 0.0
    assert score("instructions", "Sure, here:\nno commas", row, loose=True) == 1.0


def test_instructions_leave_the_random_state_alone(score: Score) -> None:
    row = {"instruction_id_list": ["count:numbers", "language:response_language"], "kwargs": [{}, {"language": "de"}]}
    random.seed(5)
    state = random.getstate()
    scores = {score("instructions", "Das ist ein deutscher Satz mit 3 Worten", row) for _ in range(5)}
    assert random.getstate() == state
    assert len(scores) == 1


def test_instructions_refuse_by_name(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
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
