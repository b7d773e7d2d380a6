"""When a watched run refreshes: the test on score vectors, its false alarms, and the order of stages that follows."""

import random

import pytest

from counterpoint.config import parse_config
from counterpoint.engine.stages import History, Watched, outcome, plan_stages
from counterpoint.errors import ConfigError
from counterpoint.stats import Former, has_fallen, is_back, is_harmed

PROMPTS = 64


def scores(mean, seed=0, prompts=PROMPTS, samples=4):
    """Scores of prompts of different difficulty; the same seed gives prompts of the same difficulty."""
    difficulty, stream = random.Random(1), random.Random(seed)
    rates = [min(1, max(0, mean + difficulty.uniform(-0.3, 0.3))) for _ in range(prompts)]
    return [sum(stream.random() < rate for _ in range(samples)) / samples for rate in rates]


def config(**recovery):
    return parse_config(
        {
            "strategy": {"name": "sequential", "order": ["math", "code", "qa"], "steps": 20},
            "domains": {name: {"source": "pocket"} for name in ("math", "code", "qa")},
            "recovery": {"watch": True, "every": 5, "steps": 12, "refresh_every": 4} | recovery,
        }
    )


def watched(**recovery):
    settings = config(**recovery)
    return Watched(plan_stages(settings, 60), settings.recovery)


def walk(policy, scores_at):
    """The stages of a run whose evaluation after ``step`` is ``scores_at(step, done, stage)``."""
    done, looks, step = [], {}, 0
    while (stage := policy.next(History(tuple(done), looks))) is not None:
        for step in range(stage.first_step + 1, stage.last_step):
            if stage.looks_at(step):
                looks[step] = scores_at(step, done, stage)
                if stage.stop_when and stage.stop_when(step, looks):
                    break
        else:
            step = stage.last_step
            looks[step] = scores_at(step, done, stage)
        done.append(stage.ended_at(step))
    return done, looks


def names(done):
    return [(part.kind, part.domains[0], part.last_step - part.first_step) for part in done]


def test_without_a_fall_the_stages_are_those_configured():
    course = watched()
    done, _ = walk(course, lambda *_: {name: [0.5] * PROMPTS for name in ("math", "code", "qa")})
    assert names(done) == [("train", "math", 20), ("train", "code", 20), ("train", "qa", 20)]
    assert done == list(course.stages)
    assert course.total(done) == 60


def test_a_fall_starts_a_refresh_at_once_and_the_stage_goes_on_where_it_was():
    healed = []

    def scores_at(step, done, stage):
        if stage.kind == "refresh" and step - stage.first_step >= 8:
            healed.append(step)
        fallen = step >= 30 and not healed
        return {"math": scores(0.3 if fallen else 0.8, step), "code": scores(0.6), "qa": scores(0.6)}

    course = watched()
    done, looks = walk(course, scores_at)
    assert names(done) == [
        *[("train", "math", 20), ("train", "code", 10)],
        *[("refresh", "math", 8), ("train", "code", 10), ("train", "qa", 20)],
    ]
    resumed = done[3]
    assert (resumed.taken, resumed.offset, resumed.num_steps) == (10, 28, 20)
    assert course.total(done) == 68 == done[-1].last_step
    assert course.closing(History(tuple(done), looks))[0]["watch"] == {
        **{"level": 0.05, "tests": 12, "level_per_test": 0.05 / 12},
        **{"refreshes": 1, "refresh_steps": 8, "still_fallen": []},
    }


def test_a_fall_at_the_end_of_the_last_stage_is_refreshed_after_it():
    def scores_at(step, done, stage):
        fallen = step == 60
        return {"math": scores(0.8), "code": scores(0.2 if fallen else 0.7, step), "qa": scores(0.6)}

    done, _ = walk(watched(), scores_at)
    assert names(done)[-2:] == [("train", "qa", 20), ("refresh", "code", 4)]


def test_a_domain_that_no_refresh_brings_back_is_refreshed_twice_a_stage_and_the_run_says_so():
    def scores_at(step, done, stage):
        return {"math": scores(0.1 if step > 35 else 0.8, step), "code": scores(0.6), "qa": scores(0.6)}

    course = watched()
    done, looks = walk(course, scores_at)
    refreshes = [part for part in done if part.kind == "refresh"]
    assert len(refreshes) == 4
    assert all(part.num_steps == 12 for part in refreshes)
    assert course.closing(History(tuple(done), looks))[0]["watch"]["still_fallen"] == ["math"]
    assert [part.num_steps for part in done if part.kind == "train"][-1] == 20


def test_the_deepest_fall_comes_first():
    def scores_at(step, done, stage):
        if done and done[-1].kind == "refresh":
            return {"math": scores(0.8), "code": scores(0.8), "qa": scores(0.6)}
        fallen = step == 60
        return {"math": scores(0.5 if fallen else 0.8), "code": scores(0.2 if fallen else 0.8), "qa": scores(0.6)}

    done, _ = walk(watched(), scores_at)
    assert next(part.domains[0] for part in done if part.kind == "refresh") == "code"


def test_a_domain_in_training_is_not_tested_against_its_earlier_stage():
    settings = parse_config(
        {
            "strategy": {"name": "sequential", "order": ["math", "code", "math"], "steps": 20},
            "domains": {name: {"source": "pocket"} for name in ("math", "code")},
            "recovery": {"watch": True, "every": 5},
        }
    )
    course = Watched(plan_stages(settings, 60), settings.recovery)

    def scores_at(step, done, stage):
        return {"math": scores(0.2 if 40 < step < 60 else 0.8), "code": scores(0.6)}

    done, _ = walk(course, scores_at)
    assert [part.kind for part in done] == ["train"] * 3


@pytest.mark.slow
def test_false_alarms_of_a_whole_run_stay_at_or_under_the_level():
    """Nothing falls: same model, new samples at every look. 12 tests a run, level 0.2 so that alarms can be counted."""
    course, runs, alarms = watched(level=0.2), 400, 0
    for run in range(runs):

        def scores_at(step, done, stage, run=run):
            return {name: scores(rate, f"{run}/{step}/{name}") for name, rate in TRUE_RATES.items()}

        done, _ = walk(course, scores_at)
        alarms += any(part.kind == "refresh" for part in done)
    assert alarms / runs <= 0.2
    assert alarms > 0, "a test that never rejects proves nothing"


TRUE_RATES = {"math": 0.7, "code": 0.5, "qa": 0.3}


def test_the_number_of_tests_is_that_of_looks_and_earlier_domains():
    assert watched().num_tests == 4 * 1 + 4 * 2
    assert watched(every=100).num_tests == 1 + 2
    assert watched(every=7).num_tests == 3 + 3 * 2


def test_a_fall_is_judged_in_pairs():
    hard, easy = [0.1] * 32, [0.9] * 32
    former = hard + easy
    now = [score - 0.1 for score in former]
    assert has_fallen(former, now, 0.001)
    shuffled = now[::-1]  # the same mean, but no prompt keeps its place: within noise
    assert not has_fallen(former, shuffled, 0.001)


def test_back_means_within_the_interval_and_no_fall_in_pairs():
    former = Former.of_scores(scores(0.8))
    assert is_back(former, scores(0.8, seed=5))
    assert not is_back(former, scores(0.3))
    former, now = Former.of_scores([0.0, 1.0] * 32), [0.0, 0.0] * 7 + [0.0, 1.0] * 25
    assert sum(now) / PROMPTS > former.low
    assert not is_back(former, now), "seven prompts fell and none rose"
    assert is_back(former, now[::-1][14:] + [1.0, 0.0] * 7), "as many, with prompts that rose"
    assert is_back(Former.of_number(0.5), [0.5] * 4)
    assert not is_back(Former.of_number(0.51), [0.5] * 4)


def test_harm_to_another_domain_ends_a_refresh_even_where_the_domain_is_back():
    good, bad = scores(0.8), scores(0.3)
    former = Former.of_scores(good)
    assert is_harmed(good, bad)
    looks = {0: {"math": bad, "code": good}, 5: {"math": good, "code": bad}, 10: {"math": bad, "code": good}}
    assert outcome("math", former, looks, 0, 0) == ("limit", None)
    assert outcome("math", former, looks, 0, 5) == ("harmed", "code")
    assert outcome("math", former, looks, 0, 10) == ("limit", None)
    assert outcome("math", former, {0: {"math": good}}, 0, 0) == ("nothing", None)
    assert outcome("math", former, looks | {5: {"math": good, "code": good}}, 0, 5) == ("recovered", None)


@pytest.mark.parametrize("strategy", ["mgs", "mixed"])
def test_only_a_sequential_run_can_be_watched(strategy):
    with pytest.raises(ConfigError, match=rf"recovery.watch: watches the stages of .*'sequential', found '{strategy}'"):
        parse_config({"strategy": strategy, "domains": {"math": {"source": "pocket"}}, "recovery": {"watch": True}})


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match=r"recovery.evry: unknown key. did you mean 'every'\?"):
        config(evry=3)
