import asyncio

import pytest

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, ROW_COLUMN, build_domain_rewards
from counterpoint.errors import RewardError


def batch(domains=("math", "code", "math")):
    return {
        "prompts": [f"p{i}" for i in range(len(domains))],
        "completions": [f"c{i}" for i in range(len(domains))],
        "completion_ids": [[i] for i in range(len(domains))],
        DOMAIN_COLUMN: list(domains),
        ROW_COLUMN: list(range(10, 10 + len(domains))),
        "answer": [str(i) for i in range(len(domains))],
        "trainer_state": object(),
    }


def test_a_reward_sees_only_its_own_rows_and_their_columns():
    seen = {}

    def length(prompts, completions, answer, trainer_state, **_):
        seen.update(prompts=prompts, completions=completions, answer=answer)
        return [1.0] * len(prompts)

    math, code = build_domain_rewards(
        {"math": length, "code": lambda prompts, **_: [0.0] * len(prompts)}, ["math", "code"]
    )
    assert math(**batch()) == [1.0, None, 1.0]
    assert seen == {"prompts": ["p0", "p2"], "completions": ["c0", "c2"], "answer": ["0", "2"]}
    assert code(**batch()) == [None, 0.0, None]


def test_names_say_domain_and_reward():
    def correct(**_):
        return []

    rewards = build_domain_rewards({"math": [correct], "code": {"tests": correct}}, ["math", "code"])
    assert [r.__name__ for r in rewards] == ["math/correct", "code/tests"]


def test_a_batch_without_the_domain_does_not_call_the_function():
    (reward,) = build_domain_rewards({"math": lambda **_: pytest.fail("called")}, ["math"])
    assert reward(**batch(("code", "code"))) == [None, None]


def test_async_functions_stay_async():
    async def judge(prompts, **_):
        return [0.5] * len(prompts)

    (reward,) = build_domain_rewards({"math": judge}, ["math"])
    assert asyncio.run(reward(**batch())) == [0.5, None, 0.5]


def test_an_exception_names_domain_row_and_completion():
    def picky(completions, **_):
        return [1 / (0 if c == "c2" else 1) for c in completions]

    (reward,) = build_domain_rewards({"math": picky}, ["math"])
    with pytest.raises(RewardError, match=r"domain 'math': reward 'picky' raised ZeroDivisionError.* row 12 .*'c2'"):
        reward(**batch())


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], r"returned 1 values for 2 completions"),
        (3.0, r"returned a float for 2 completions"),
        (["good", 1.0], r"returned 'good' for row 10"),
        ([1.0, float("nan")], r"returned nan for row 12"),
    ],
)
def test_wrong_values_are_refused_by_name(returned, message):
    (reward,) = build_domain_rewards({"math": {"odd": lambda **_: returned}}, ["math"])
    with pytest.raises(RewardError, match=rf"domain 'math': reward 'odd' {message}"):
        reward(**batch())


def test_none_leaves_a_completion_out():
    (reward,) = build_domain_rewards({"math": lambda **_: [None, 1]}, ["math"])
    assert reward(**batch()) == [None, None, 1.0]


def test_log_extra_is_laid_out_over_the_whole_batch():
    logged = {}

    def noisy(prompts, log_extra, **_):
        log_extra("note", ["a", "b"])
        return [0.0, 0.0]

    (reward,) = build_domain_rewards({"math": noisy}, ["math"])
    reward(**batch(), log_extra=lambda column, values: logged.update({column: values}))
    assert logged == {"math/note": ["a", None, "b"]}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"math": len}, "no reward for domain 'code'"),
        ({"math": len, "code": len, "qa": len}, "'qa' is no domain"),
        ({"math": len, "code": 3}, "expected a function, found int"),
    ],
)
def test_bad_mappings_are_refused(rewards, message):
    with pytest.raises(RewardError, match=message):
        build_domain_rewards(rewards, ["math", "code"])
