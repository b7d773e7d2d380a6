import random
import re
import subprocess
import sys

import pytest

from counterpoint.errors import DomainError, RewardError
from counterpoint.pocket import TASKS
from counterpoint.pocket.tasks import LETTER_PAIRS, SPLITS, fitting_words, split_of
from counterpoint.pocket.words import WORDS

NAMES = ["math", "code", "qa", "writing"]
ROWS = 300


def rows_of(name, split, count=ROWS):
    return [TASKS[name].generate(split, index) for index in range(count)]


def output_of(code):
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_four_domains_in_their_order():
    assert list(TASKS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_same_every_time_and_differ_by_index(name):
    assert rows_of(name, "train") == rows_of(name, "train")
    assert len({row["prompt"] for row in rows_of(name, "train")}) > ROWS / 2


def test_rows_do_not_depend_on_the_process():
    code = "print([task.generate(split, 7) for task in TASKS.values() for split in ('train', 'test')])"
    assert output_of(f"from counterpoint.pocket import TASKS; {code}") == str(
        [task.generate(split, 7) for task in TASKS.values() for split in SPLITS]
    )


def test_importing_the_tasks_imports_neither_torch_nor_transformers():
    code = "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])"
    assert output_of(f"import sys, counterpoint.pocket; {code}") == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_prompt(name):
    train = {row["prompt"] for row in rows_of(name, "train", 2000)}
    test = {row["prompt"] for row in rows_of(name, "test", 500)}
    assert not train & test
    assert all(split_of(name, prompt) == "test" for prompt in test)


@pytest.mark.parametrize("name", NAMES)
def test_a_fifth_of_the_prompts_is_held_out(name):
    rng = random.Random(0)
    prompts = {TASKS[name].draw(rng)[0] for _ in range(4000)}
    share = sum(split_of(name, prompt) == "test" for prompt in prompts) / len(prompts)
    assert 0.15 < share < 0.25


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_short_and_complete(name, split):
    for row in rows_of(name, split):
        assert set(row) == {"prompt", "answer", "task"}
        assert row["task"] == name
        assert len(row["prompt"]) <= 40
        assert 1 <= len(row["answer"]) <= 19


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_score_one(name):
    task, rng = TASKS[name], random.Random(0)
    for row in rows_of(name, "train"):
        assert task.score(row, row["answer"]) == 1.0
        assert task.score(row, f" {task.gold(row, rng)}\n") == 1.0


@pytest.mark.parametrize(("name", "most"), [("math", 0.05), ("code", 0.05), ("qa", 0.05), ("writing", 0.25)])
def test_noise_and_other_rows_answers_score_low(name, most):
    task, rng = TASKS[name], random.Random(0)
    rows = rows_of(name, "test")
    noise = [task.score(row, task.noise(row, rng)) for row in rows]
    shifted = [task.score(row, other["answer"]) for row, other in zip(rows, rows[1:] + rows[:1], strict=True)]
    assert sum(noise) / ROWS < most
    assert sum(shifted) / ROWS < most


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("junk", ["", " ", "\n", "?", "the answer", "é", "1" * 500, "a " * 200])
def test_junk_scores_nothing(name, junk):
    assert TASKS[name].score(TASKS[name].generate("test", 0), junk) == 0.0


@pytest.mark.parametrize("name", ["math", "code", "qa"])
def test_text_after_the_answer_is_wrong(name):
    row = TASKS[name].generate("test", 0)
    assert TASKS[name].score(row, row["answer"] + "0") == 0.0
    assert TASKS[name].score(row, row["answer"] + " " + row["answer"]) == 0.0


@pytest.mark.parametrize("index", range(50))
def test_math_answers_are_sums(index):
    row = TASKS["math"].generate("train", index)
    left, right = re.fullmatch(r"(\d+)\+(\d+)=", row["prompt"]).groups()
    assert int(row["answer"]) == int(left) + int(right)


@pytest.mark.parametrize(
    ("program", "oracle"),
    [
        ("rev", lambda s: "".join(reversed(s))),
        ("sort", lambda s: "".join(sorted(s))),
        ("up", str.upper),
        ("dup", lambda s: s * 2),
    ],
)
def test_code_answers_are_what_the_program_prints(program, oracle):
    found = 0
    for row in rows_of("code", "train"):
        name, text = re.fullmatch(r'(\w+)\("(\w+)"\)=', row["prompt"]).groups()
        if name == program:
            found += 1
            assert row["answer"] == oracle(text)
    assert found > ROWS / 8


def test_qa_answers_stand_in_the_context():
    for row in rows_of("qa", "train"):
        *facts, asked = row["prompt"].split(" ")
        assert f"{asked}{row['answer']}" in facts
        assert len(set(facts)) == len(facts) in (2, 3)


WISH = {"prompt": "3 words +a -e:"}


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("cat lamp sand", 1.0),
        ("sand cat lamp", 1.0),
        ("cat lamp", 2 / 3),
        ("cat", 1 / 3),
        ("cat lamp sand hat", 3 / 4),
        ("cat lamp sand sand", 3 / 4),
        ("cat cap lamp", 2 / 3),
        ("cat cat cat", 1 / 3),
        ("cat lake sand", 2 / 3),
        ("dog lamp sand", 2 / 3),
        ("caat lamp sand", 2 / 3),
        ("cat, lamp, sand", 1 / 3),
        ("cat  lamp sand", 3 / 4),
        ("Cat lamp sand", 2 / 3),
    ],
)
def test_writing_is_graded_by_length_fit_form_and_variety(completion, score):
    assert TASKS["writing"].score(WISH, completion) == pytest.approx(score)


def test_every_writing_wish_can_be_met():
    assert all(len({word[0] for word in fitting_words(*pair)}) >= 6 for pair in LETTER_PAIRS)
    assert len(WORDS) == len(set(WORDS))


def test_errors_say_what_to_do():
    with pytest.raises(DomainError, match=r"Unknown split 'tset' .*'math'.* did you mean 'test'\? Known: test, train"):
        TASKS["math"].generate("tset", 0)
    with pytest.raises(DomainError, match=r"Row -1 .* numbered from 0"):
        TASKS["qa"].generate("train", -1)
    with pytest.raises(RewardError, match="cannot score the prompt 'hello': it has the form '3 words"):
        TASKS["writing"].score({"prompt": "hello"}, "cat")
