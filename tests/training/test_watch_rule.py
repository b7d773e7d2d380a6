"""When a watched run refreshes: the test on score vectors, its false alarms, and the order of stages that follows."""

import random

import pytest

from counterpoint.config import parse_config
from counterpoint.engine.stages import History, RefreshPlan, Watched, outcome, plan_stages
from counterpoint.errors import ConfigError
from counterpoint.stats import Former, has_fallen

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
    assert 0.1 <= alarms / runs <= 0.2, "at most the stated level, and at least half of it"


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


def plan(former, every=5, margin=0.03):
    return RefreshPlan("math", Former.of_scores(former), every, {}, margin)


def test_recovered_is_a_proven_rise_to_within_the_margin_and_harm_ends_a_refresh_before_it():
    good, bad = scores(0.8), scores(0.3)
    looks = {0: {"math": bad, "code": good}, 5: {"math": good, "code": bad}, 10: {"math": bad, "code": good}}
    assert outcome(plan(good), looks, 0, 0, 20) == ("limit", None)
    assert outcome(plan(good), looks, 0, 5, 20) == ("harmed", "code")
    assert outcome(plan(good), looks, 0, 10, 20) == ("limit", None)
    assert outcome(plan(good), {0: {"math": good}}, 0, 0, 20) == ("nothing", None)
    assert outcome(plan(good), looks | {5: {"math": good, "code": good}}, 0, 5, 20) == ("recovered", None)
    half = looks | {5: {"math": scores(0.6), "code": good}}
    assert outcome(plan(good), half, 0, 5, 20) == ("limit", None), "a proven rise that leaves much missing"
    assert outcome(plan(good, margin=0.3), half, 0, 5, 20) == ("recovered", None)


def refresh_that_changes_nothing(seed, former_mean, mean, looks=8):
    """How a refresh of 40 steps ends whose evaluations are new samples of one model, below its former score."""
    former = scores(former_mean, f"{seed}/former")
    found = {0: {"math": scores(mean, f"{seed}/0"), "code": scores(0.5, f"{seed}/0c")}}
    for look in range(1, looks + 1):
        found[5 * look] = {"math": scores(mean, f"{seed}/{look}"), "code": scores(0.5, f"{seed}/{look}c")}
        stop, _ = outcome(plan(former), found, 0, 5 * look, 5 * looks)
        if stop != "limit":
            return stop
    return "limit"


def test_a_refresh_that_changes_nothing_is_seldom_called_recovered_or_harmful():
    """It was in three of four such runs when `back` meant the absence of a difference."""
    ends = [refresh_that_changes_nothing(seed, 0.8, 0.72) for seed in range(120)]
    assert ends.count("recovered") <= 6
    assert ends.count("harmed") <= 6


def test_a_refresh_that_brings_the_domain_back_is_seen():
    ends = []
    for seed in range(40):
        former = scores(0.8, f"{seed}/former")
        found = {0: {"math": scores(0.55, f"{seed}/0"), "code": scores(0.5, "c")}}
        found[40] = {"math": scores(0.82, f"{seed}/8"), "code": scores(0.5, "c")}
        ends.append(outcome(plan(former), found, 0, 40, 40)[0])
    assert ends.count("recovered") >= 34


@pytest.mark.parametrize("strategy", ["mgs", "mixed"])
def test_only_a_sequential_run_can_be_watched(strategy):
    with pytest.raises(ConfigError, match=rf"recovery.watch: watches the stages of .*'sequential', found '{strategy}'"):
        parse_config({"strategy": strategy, "domains": {"math": {"source": "pocket"}}, "recovery": {"watch": True}})


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match=r"recovery.evry: unknown key. did you mean 'every'\?"):
        config(evry=3)
