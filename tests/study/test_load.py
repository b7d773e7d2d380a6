"""A study file: what its rows become, and every problem told at once."""

import pytest
import yaml

from counterpoint.config import parse_config
from counterpoint.config.training_keys import unknown_setting
from counterpoint.errors import ConfigError
from counterpoint.study import load_study, plan_jobs
from study.studies import base, study_of, write_study

SETTINGS = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "learning_rate",
    "max_completion_length",
)


def unknown_settings(training):
    return [(key, unknown_setting(key, SETTINGS)) for key in training if key not in SETTINGS]


def problems(path):
    with pytest.raises(ConfigError) as caught:
        load_study(path, unknown_settings)
    return str(caught.value)


def jobs_of(study, tmp_path):
    return {job.id: job for job in plan_jobs(study, tmp_path / "runs")}


def test_rows_differ_from_the_base_in_what_they_say_alone(tmp_path):
    study = study_of(
        tmp_path, {"mixed": "mixed", "double": {"strategy": "mixed", "set": {"domains.math.share": 2}}, "base": "base"}
    )
    jobs = jobs_of(study, tmp_path)
    assert list(jobs) == ["base", "mixed-seed-0", "double-seed-0", "mixed-seed-1", "double-seed-1"]
    plain, double = (jobs[name].config.model_dump() for name in ("mixed-seed-1", "double-seed-1"))
    assert double["domains"]["math"].pop("share") == 2
    assert plain["domains"]["math"].pop("share") == 1
    assert (plain["run"].pop("name"), double["run"].pop("name")) == ("mixed-seed-1", "double-seed-1")
    assert plain == double
    assert plain["run"]["seed"] == 1
    assert plain["evaluation"]["seed"] == 0
    assert plain["evaluation"]["before"] is False
    assert plain["run"]["keep"] == 1


def test_a_mapping_changes_the_keys_it_names_and_a_row_may_keep_more(tmp_path):
    row = {
        "strategy": "mgs",
        "set": {"training": {"learning_rate": 0.5}, "run": {"keep": 7}, "evaluation.before": True},
    }
    config = study_of(tmp_path, {"mixed": "mixed", "hot": row}).configs["hot", ""]
    assert config.training == base()["training"] | {"learning_rate": 0.5}
    assert config.run.keep == 7
    assert config.evaluation.before


def test_a_row_sets_its_own_balance_whatever_the_base_has(tmp_path):
    keys = base() | {"balance": {"name": "worst", "options": {"clip": 0.2}}}
    signal = {"name": "signal", "options": {"most": 3.0}}
    rows = {
        "worst": "mixed",
        "tokens": {"strategy": "mixed", "set": {"balance": "tokens"}},
        "signal": {"strategy": "mgs", "set": {"balance": signal}},
    }
    found = study_of(tmp_path, {"mixed": "mixed", **rows}, config=keys).configs
    assert found["worst", ""].balance.spec == keys["balance"]
    assert found["tokens", ""].balance.spec == "tokens"
    assert found["signal", ""].balance.spec == signal


def test_experts_share_one_budget_and_are_evaluated_on_all_domains(tmp_path):
    keys = base()
    keys["training"]["max_steps"] = 7
    study = study_of(
        tmp_path, {"mixed": "mixed", "experts": "experts", "long": {"kind": "experts", "steps": 9}}, config=keys
    )
    steps = {key: config.training["max_steps"] for key, config in study.configs.items()}
    assert (steps["experts", "math"], steps["experts", "code"]) == (4, 3)
    assert (steps["long", "math"], steps["long", "code"]) == (9, 9)
    alone = study.configs["experts", "code"]
    assert alone.strategy.order == ["code"]
    assert list(alone.domains) == ["math", "code"]


def test_orders_become_rows(tmp_path):
    study = study_of(tmp_path, {"mixed": "mixed", "seq": {"strategy": "sequential", "orders": "all"}})
    assert list(study.rows) == ["mixed", "seq-math-code", "seq-code-math"]
    assert study.configs["seq-code-math", ""].strategy.order == ["code", "math"]


def test_jobs_wait_for_the_models_they_are_made_of(tmp_path):
    rows = {
        "mixed": "mixed", "experts": "experts", "seq": "sequential",
        "ties": {"kind": "merge", "of": "experts", "method": "ties", "seeds": [1]},
        "fresh": {"kind": "refresh", "of": "seq", "domain": "math"},
    }  # fmt: skip
    jobs = jobs_of(study_of(tmp_path, rows), tmp_path)
    assert jobs["ties-seed-1"].needs == ("experts-math-seed-1", "experts-code-seed-1")
    assert "ties-seed-0" not in jobs
    assert jobs["fresh-seed-0"].needs == ("seq-seed-0",)
    names = list(jobs)
    assert all(names.index(need) < names.index(job.id) for job in jobs.values() for need in job.needs)


def test_the_base_may_be_a_file_beside_the_study(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base()))
    inline = study_of(tmp_path / "inline", {"mixed": "mixed"})
    beside = load_study(write_study(tmp_path, {"mixed": "mixed"}, config="base.yaml"))
    assert inline.configs["mixed", ""].model_dump(exclude={"run"}) == beside.configs["mixed", ""].model_dump(
        exclude={"run"}
    )


def plain(study):
    return {key: config.model_dump(exclude={"run": {"name"}}) for key, config in study.configs.items()}


def test_the_resolved_study_is_a_study(tmp_path):
    rows = {
        "mixed": "mixed",
        "experts": {"kind": "experts", "steps": 3},
        "seq": {"strategy": "sequential", "orders": "all"},
    }
    study = study_of(tmp_path, rows)
    (tmp_path / "again.yaml").write_text(study.to_yaml())
    again = load_study(tmp_path / "again.yaml")
    assert plain(again) == plain(study)
    assert again.config.seeds == (0, 1)


def test_every_problem_of_a_study_is_told_at_once_with_its_place(tmp_path):
    rows = {
        "mixed": "mxed",
        "hot": {"strategy": "mgs", "set": {"training.learning_rat": 1e-3}},
        "strange": {"kind": "exprts"},
        "wrong": {"strategy": "mgs", "stepz": 3},
        "shares": {"strategy": "mixed", "set": {"domains.math.share": -1}},
    }
    path = write_study(tmp_path, rows)
    text = problems(path)
    lines = path.read_text().splitlines()
    assert "The study has 5 problems" in text
    for key, message in {
        "mixed: mxed": "strategy.name: unknown strategy 'mxed': did you mean 'mixed'?",
        "set:": "training.learning_rat: not a setting of trl.GRPOConfig; did you mean 'learning_rate'?",
        "kind: exprts": "rows.strange.kind: unknown kind 'exprts': did you mean 'experts'?",
        "stepz": "rows.wrong.stepz: unknown key.",
    }.items():
        number = next(i for i, line in enumerate(lines, 1) if key in line)
        assert f"{path}:{number}: {message}" in text
    assert "domains.math.share: should be greater than 0, found -1" in text


MERGE = {"kind": "merge", "of": "experts", "method": "average"}
LATER = {"of": "s", "domain": "code"}


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ({"mgs": "mgs"}, {}, "reference: unknown row 'mixed'"),
        ({"mixed": "mixed"}, {"seeds": [1, 1]}, "seeds: names a seed twice, found [1, 1]"),
        ({"mixed": "mixed"}, {"seeds": 0}, "seeds"),
        ({"mixed": "mixed"}, {"seds": 3}, "seds: unknown key. did you mean 'seeds'?"),
        ({"mixed": "mixed", "m": MERGE | {"of": "mixed"}}, {}, "found 'mixed': There is none"),
        (
            {"mixed": "mixed", "experts": {"kind": "experts", "seeds": 1}, "m": MERGE},
            {},
            "'experts' has no run of seed 1",
        ),
        (
            {"mixed": "mixed", "experts": "experts", "m": MERGE | {"density": 0.5}},
            {},
            "rows.m.density: belongs to the method 'ties'",
        ),
        ({"mixed": "mixed", "r": LATER | {"kind": "rollback", "of": "mixed"}}, {}, "whose strategy is sequential"),
        ({"mixed": "mixed", "r": LATER | {"kind": "refresh", "of": "mixed"}}, {}, "Or give the score to reach"),
        (
            {"mixed": "mixed", "s": "sequential", "r": LATER | {"kind": "rollback"}},
            {},
            "no stage follows that of 'code'",
        ),
        (
            {"mixed": "mixed", "s": "sequential", "r": LATER | {"kind": "refresh", "domain": "maths"}},
            {},
            "did you mean 'math'?",
        ),
        ({"mixed": "mixed", "experts": "experts", "experts-math": "mgs"}, {}, "has the name of an expert's runs"),
        ({"mixed": "mixed", "bad/name": "mgs"}, {}, "rows.bad/name"),
        ({"mixed": ["mgs"]}, {}, "expected a strategy's name or a mapping"),
        ({"mixed": "mixed"}, {"config": "absent.yaml"}, "there is no such configuration file"),
        ({"mixed": "mixed"}, {"config": {"domains": {}}}, "domains"),
    ],
)  # fmt: skip
def test_bad_studies_are_refused(rows, keys, message, tmp_path):
    assert message in problems(write_study(tmp_path, rows, **keys))


LATER_MATH = {"of": "s", "domain": "math"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"kind": "rollback", "options": {"budgetz": 0.1}},
            "options.budgetz: no option of a rollback: did you mean 'bu",
        ),
        ({"kind": "rollback", "options": {"draws": "many"}}, "options.draws: Input should be a valid integer"),
        (
            {"kind": "refresh", "options": {"contraction": 1}},
            "options.contraction: no option of a refresh: Known: every",
        ),
        ({"kind": "refresh", "options": {"steps": 0}}, "options: steps must be at least 1, found 0."),
    ],
)
def test_options_are_checked_by_their_own_class(tmp_path, row, message):
    rows = {"mixed": "mixed", "s": "sequential", "r": LATER_MATH | row}
    assert f"rows.r.{message}" in problems(write_study(tmp_path, rows))


CONTRAST = {"row": "mgs", "measure": "average"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"contrasts": [{"row": "mg"}]}, "contrasts.0.row: 'mg' is not compared with 'mixed': did you mean 'mgs'?"),
        ({"contrasts": [{"row": "base"}]}, "contrasts.0.row: 'base' is not compared"),
        ({"contrasts": [{"row": "mixed"}]}, "contrasts.0.row: 'mixed' is not compared"),
        ({"contrasts": [{"row": "mgs", "measure": "maths"}]}, "contrasts.0.measure: unknown measure 'maths'"),
        ({"contrasts": [CONTRAST, CONTRAST]}, "contrasts.1: is named twice"),
        ({"contrasts": [CONTRAST] * 11}, "contrasts"),
        ({"worth": 0}, "worth: should be greater than 0"),
        ({"reference": "base"}, "reference: 'base' is one model without seeds"),
    ],
)
def test_bad_plans_are_refused(tmp_path, keys, message):
    assert message in problems(write_study(tmp_path, {"base": "base", "mixed": "mixed", "mgs": "mgs"}, **keys))


def test_given_checkpoints_are_one_or_one_per_seed_and_lie_beside_the_file(tmp_path):
    (tmp_path / "theirs").mkdir()
    rows = {"mixed": "mixed", "theirs": {"kind": "given", "path": ["theirs", "hub/name"]}}
    study = study_of(tmp_path, rows)
    assert study.rows["theirs"].path == [str(tmp_path / "theirs"), "hub/name"]
    assert study.compared == ("theirs",)
    assert "names 2 checkpoints for 3 seeds" in problems(write_study(tmp_path, rows, seeds=3))


def test_experts_need_a_budget_to_divide(tmp_path):
    keys = base()
    del keys["training"]["max_steps"]
    assert "needs training.max_steps in the base configuration" in problems(
        write_study(tmp_path, {"mixed": "mixed", "experts": "experts"}, config=keys)
    )


def test_no_file_and_no_mapping(tmp_path):
    assert "there is no such study file" in problems(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "a study is a mapping, found list" in problems(tmp_path / "list.yaml")


def test_a_shared_base_keeps_its_meaning_as_a_plain_configuration():
    assert parse_config(base()).training["max_steps"] == 6
