"""The dial: what the two domains want, and what tells their prompts apart."""

import random
from typing import get_args

import pytest

from counterpoint.config import PocketSource
from counterpoint.domains.sources import read_pocket_test, read_source
from counterpoint.errors import DomainError
from counterpoint.pocket.dial import DIAL, Cue, pocket_task
from counterpoint.rewards import build_reward


def prompts(name, cue):
    source = PocketSource(type="pocket", task=name, cue=cue, size=300)
    return {row["prompt"] for row in read_source(source, None)}


def test_a_plain_cue_is_the_first_letter_and_a_hidden_one_the_needed_letter():
    assert {prompt[:2] for prompt in prompts("short", "plain")} == {"A:"}
    assert {prompt[:2] for prompt in prompts("long", "plain")} == {"B:"}
    letters = [{prompt.split("+")[1][0] for prompt in prompts(name, "hidden")} for name in DIAL]
    assert max(letters[0]) < "m" <= min(letters[1])


def test_without_a_cue_the_same_prompt_is_in_both():
    short, long = (prompts(name, "absent") for name in DIAL)
    assert len(short & long) > 30
    assert {prompt.split("+")[1][0] for prompt in short} == {prompt.split("+")[1][0] for prompt in long}


@pytest.mark.parametrize("cue", get_args(Cue))
@pytest.mark.parametrize("length", [10, 20, 40])
@pytest.mark.parametrize("name", DIAL)
def test_gold_answers_are_worth_1_and_those_of_the_other_domain_little(name, length, cue):
    task = pocket_task(name, cue, length)
    other = pocket_task(*(set(DIAL) - {name}), cue, length)
    reward = build_reward("pocket")
    for i in range(20):
        row = task.generate("train", i)
        gold, wrong = task.gold(row, random.Random(i)), other.draw(random.Random(i))[1]
        columns = {key: [value, value] for key, value in row.items()}
        assert reward(completions=[gold, wrong], **columns)[0] == 1
        assert task.score(row, wrong) <= 0.1


def test_scores_follow_the_length():
    short, long = (pocket_task(name, None, 20) for name in DIAL)
    row = {"length": 20}
    texts = ["", "a", "abcd", "a" * 10, "a" * 16, " " + "a" * 20 + " ", "a" * 30]
    assert [short.score(row, text) for text in texts] == pytest.approx([0, 1, 1, 0.5, 0, 0, 0])
    assert [long.score(row, text) for text in texts] == pytest.approx([0, 0.05, 0.2, 0.5, 0.8, 1, 1])


def test_rows_are_the_same_every_time_and_held_out_prompts_are_others():
    source = PocketSource(type="pocket", task="short", cue="hidden", size=200)
    assert read_source(source, None) == read_source(source, None)
    held_out = {row["prompt"] for row in read_pocket_test(source, 40)}
    assert len(held_out) == 40
    assert not held_out & prompts("short", "hidden")


def test_other_tasks_have_no_cue():
    with pytest.raises(DomainError, match="no cue"):
        read_source(PocketSource(type="pocket", task="math", cue="plain"), None)
    assert pocket_task("math").generate("train", 0) == {"prompt": "37+3=", "answer": "40", "task": "math"}
