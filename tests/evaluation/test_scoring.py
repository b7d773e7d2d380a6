import json
import math

import pytest

from counterpoint.domains import Domain, LoadSummary, WeightedReward
from counterpoint.errors import RewardError
from counterpoint.evaluation import Completion, EvaluationPlan, Sampling, evaluate, score_rows
from counterpoint.evaluation.scoring import measure_rows
from counterpoint.pocket import model_path
from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import FAILED, build_reward
from counterpoint.stats import mean_interval


def domain(*rewards, rows=({"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": "b"}), metrics=()):
    summary = LoadSummary(*[0] * len(LoadSummary.__dataclass_fields__))
    return Domain("math", [], list(rows), tuple(rewards), 1.0, summary, tuple(metrics))


def completions(*texts):
    return [Completion(text, len(text), False) for text in texts]


def right(completions, answer, **_):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def test_rewards_are_summed_by_weight():
    both = domain(WeightedReward("right", 1.0, right), WeightedReward("half", 0.5, lambda prompts, **_: [1, None]))
    found = score_rows(both, both.evaluation, completions("a", "x"))
    assert found.totals == [1.5, 0.0]


def test_a_reward_that_failed_leaves_the_completion_out_whatever_the_others_gave():
    judge = WeightedReward("judge", 1.0, lambda prompts, **_: [FAILED, 0.5])
    both = domain(WeightedReward("right", 1.0, right), judge)
    found = score_rows(both, both.evaluation, completions("a", "x"))
    assert found.totals == [None, 0.5]
    assert found.parts == {"right": [1.0, 0.0], "judge": [None, 0.5]}


def test_chat_completions_reach_rewards_as_messages():
    seen = []
    rows = [{"prompt": [{"role": "user", "content": "hi"}], "answer": "a"}]
    spy = WeightedReward("spy", 1.0, lambda completions, **_: seen.extend(completions) or [1.0])
    score_rows(domain(spy, rows=rows), rows, completions("a"))
    assert seen == [[{"role": "assistant", "content": "a"}]]


def test_a_wrong_number_of_values_names_domain_and_reward():
    broken = domain(WeightedReward("broken", 1.0, lambda **_: [1.0]))
    with pytest.raises(RewardError, match=r"domain 'math': reward 'broken' returned 1 values for 2 completions"):
        score_rows(broken, broken.evaluation, completions("a", "b"))


def test_a_reward_that_raises_names_domain_row_and_completion():
    def picky(completions, **_):
        return [1 / (c != "x") for c in completions]

    broken = domain(WeightedReward("picky", 1.0, picky))
    with pytest.raises(RewardError, match=r"domain 'math': reward 'picky' raised ZeroDivisionError.* row 1 .*'x'"):
        score_rows(broken, broken.evaluation, completions("a", "x"))


@pytest.mark.parametrize("value", [float("nan"), "good"])
def test_values_that_are_no_numbers_are_refused(value):
    broken = domain(WeightedReward("odd", 1.0, lambda prompts, **_: [1.0, value]))
    with pytest.raises(RewardError, match=r"domain 'math': reward 'odd' returned .* for row 1"):
        score_rows(broken, broken.evaluation, completions("a", "b"))


def test_async_rewards_are_awaited():
    async def judge(prompts, **_):
        return [0.5] * len(prompts)

    both = domain(WeightedReward("judge", 2.0, judge))
    assert score_rows(both, both.evaluation, completions("a", "b")).totals == [1.0, 1.0]


def test_evaluate_scores_prompts_not_samples():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [TASKS["math"].generate("test", i) for i in range(6)]
    pocket = domain(WeightedReward("pocket", 1.0, build_reward("pocket")), rows=rows)
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    progress = []
    plan = EvaluationPlan(samples=3, examples=2, sampling=Sampling(max_new_tokens=8, batch_size=10))
    (score,) = evaluate(model, tokenizer, [pocket], plan, lambda *update: progress.append(update))

    assert (score.prompts, score.samples, len(score.scores)) == (6, 3, 6)
    interval = mean_interval(score.scores)
    assert (score.mean, score.low, score.high) == (interval.value, interval.low, interval.high)
    assert set(score.scores) <= {0, 1 / 3, 2 / 3, 1}
    assert 0 <= score.greedy <= 1
    assert len(score.examples) == 2
    assert score.examples[0].prompt == rows[0]["prompt"]
    assert score.examples[0].reference == rows[0]["answer"]
    assert progress[-1] == ("math", 24, 24)
    line = json.loads(json.dumps(score.to_json()))
    assert line["domain"] == "math"
    assert math.isclose(line["mean"], score.mean)
    assert "examples" not in line


def test_what_no_function_scores_has_no_reward():
    some = domain(WeightedReward("some", 2.0, lambda prompts, **_: [None, 0.5]))
    found = score_rows(some, some.evaluation, completions("a", "x"))
    assert (found.totals, found.parts) == ([None, 1.0], {"some": [None, 0.5]})


@pytest.fixture(scope="module")
def pocket():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return (
        AutoModelForCausalLM.from_pretrained(model_path()),
        AutoTokenizer.from_pretrained(model_path(), padding_side="left"),
    )


ROWS = [TASKS["math"].generate("test", i) for i in range(4)]
SHORT = EvaluationPlan(samples=3, examples=4, sampling=Sampling(max_new_tokens=2))


def evaluated(pocket, *rewards):
    (score,) = evaluate(*pocket, [domain(*rewards, rows=ROWS)], SHORT)
    return score


def test_unscored_completions_are_counted_and_stand_in_no_mean(pocket):
    def judge(prompts, **_):
        """Leaves out the first prompt, and the first sample of the second; gives 1 to all others."""
        left_out = 4 if len(prompts) == 12 else 1
        return [None] * left_out + [1.0] * (len(prompts) - left_out)

    score = evaluated(pocket, WeightedReward("judge", 1.0, judge))
    assert (score.scores, score.mean, score.greedy) == ((None, 1.0, 1.0, 1.0), 1.0, 1.0)
    assert (score.prompts, score.unscored) == (4, 5)
    assert score.low == mean_interval([1.0] * 3).low
    line = score.to_json()
    assert line["scores"][0] is None
    assert line["unscored"] == 5
    assert score.examples[0].reward is None
    nothing = WeightedReward("judge", 1.0, lambda prompts, **_: [None] * len(prompts))
    with pytest.raises(RewardError, match="none of 12 completions was scored"):
        evaluated(pocket, nothing)


def test_the_parts_of_a_reward_are_told_where_there_are_several(pocket):
    one = WeightedReward("one", 1.0, lambda prompts, **_: [1.0] * len(prompts))
    half = WeightedReward("half", 3.0, lambda prompts, **_: [None, *[0.5] * (len(prompts) - 1)])
    assert "parts" not in evaluated(pocket, one).to_json()
    assert "unscored" not in evaluated(pocket, one).to_json()
    score = evaluated(pocket, one, half)
    assert score.to_json()["parts"] == {"one": 1.0, "half": 0.5}
    assert score.scores == (2.0, 2.5, 2.5, 2.5)


def test_metrics_are_measured_and_change_no_score(pocket):
    one = WeightedReward("one", 1.0, lambda prompts, **_: [1.0] * len(prompts))
    third = WeightedReward("third", 1.0, lambda prompts, **_: [FAILED, None, *[1 / 3] * (len(prompts) - 2)])
    never = WeightedReward("never", 1.0, lambda prompts, **_: [None] * len(prompts))
    plain = evaluated(pocket, one)
    (score,) = evaluate(*pocket, [domain(one, rows=ROWS, metrics=(third, never))], SHORT)
    assert (score.scores, score.mean, score.unscored) == (plain.scores, plain.mean, 0)
    assert score.to_json()["metrics"] == {"third": 0.333333, "never": None}
    assert "metrics" not in plain.to_json()


def test_a_metric_that_raises_is_named():
    def picky(completions, **_):
        raise ValueError("no")

    measured = domain(WeightedReward("right", 1.0, right), metrics=(WeightedReward("picky", 1.0, picky),))
    with pytest.raises(RewardError, match="domain 'math': reward 'picky' raised ValueError: no"):
        measure_rows(measured, measured.evaluation, completions("a", "b"))
