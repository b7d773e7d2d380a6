"""``schedule`` and ``curriculum`` in a configuration: short forms, what is refused, and where a module is found."""

import pytest
import yaml

from counterpoint.config import load_config, parse_config
from counterpoint.config.load import check_document, read_document
from counterpoint.engine.prepare import check_config, plan_checked
from counterpoint.errors import ConfigError
from counterpoint.recovery.refresh import RefreshOptions, refresh_config
from counterpoint.study.configs import build_configs
from counterpoint.study.schema import ExpertsRow, TrainRow

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

BASE = {
    "model": "pocket",
    "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
    "training": {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    | {"num_generations": 4, "max_completion_length": 8},
    "run": {"device": "cpu"},
}
SCHEDULE = [{"step": 2, "shares": {"math": 3, "code": 1}}, {"step": 3, "weights": {"math": 2.0}}]


def parsed(**more):
    return parse_config(BASE | more)


def test_both_are_read_written_and_read_again():
    config = parsed(schedule=SCHEDULE)
    assert (config.schedule[0].step, config.schedule[1].weights) == (2, {"math": 2.0})
    assert parse_config(yaml.safe_load(config.to_yaml())).schedule == config.schedule
    config = parsed(curriculum="mine:mix", schedule=None)
    assert config.curriculum == parsed(curriculum={"function": "mine:mix", "every": 1}).curriculum
    assert config.schedule == ()
    assert check_config(parsed(schedule=SCHEDULE)) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"schedule": [{"step": 2}]}, r"schedule\.0: changes nothing"),
        ({"schedule": SCHEDULE[::-1]}, r"schedule\.1\.step: 2 does not come after 3"),
        ({"schedule": [{"step": 2, "shares": {"math": 3}}]}, r"schedule\.0\.shares: no share for code"),
        ({"schedule": [{"step": 2, "weights": {"mat": 3}}]}, r"schedule\.0\.weights: unknown domain 'mat'.*'math'"),
        ({"schedule": [{"step": 2, "weights": {"math": 0}}]}, r"schedule\.0\.weights\.math: should be greater than 0"),
        ({"schedule": [{"step": "soon", "weights": {}}]}, r"schedule\.0\.step"),
        ({"schedule": SCHEDULE, "strategy": "sequential"}, "schedule: changes what a step holds"),
        ({"curriculum": "mine:mix", "strategy": "sequential"}, "curriculum: changes what a step holds"),
        ({"curriculum": "mine:mix", "schedule": SCHEDULE}, "curriculum: both"),
        ({"curriculum": "mine"}, r"curriculum\.function"),
        ({"curriculum": {"function": "mine:mix", "often": 2}}, r"curriculum\.often: unknown key"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_at_its_key(more, message):
    with pytest.raises(ConfigError, match=message):
        parsed(**more)


def test_shares_that_some_step_cannot_hold_are_found_before_training():
    unfit = [{"step": 2, "shares": {"math": 2, "code": 1}}]
    (problem,) = check_config(parsed(schedule=unfit))
    assert problem.startswith("schedule, step 2: ")
    assert "gradient_accumulation_steps=3 or 6 would do" in problem
    assert check_config(parsed(schedule=unfit, share_rule="carry")) == []
    (problem,) = check_config(parsed(schedule=SCHEDULE, strategy="mgs-significant"))
    assert "'code' has 1" in problem


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my_curriculum_of_tests.py").write_text("def mix(history, mix): pass\n")
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(BASE | {"curriculum": "my_curriculum_of_tests:mix"}))
    return path


def test_the_module_lies_beside_the_configuration_or_in_a_folder_that_is_named(file):
    config = load_config(file, ["curriculum.every=5"])
    assert config.curriculum.model_dump() == {
        "function": "my_curriculum_of_tests:mix", "every": 5, "folder": str(file.parent)
    }  # fmt: skip
    plan_checked(config)
    with pytest.raises(
        ConfigError, match=r"The curriculum 'my_curriculum_of_tests:mixed': .* has no 'mixed'; did you mean 'mix'"
    ):
        plan_checked(load_config(file, ["curriculum=my_curriculum_of_tests:mixed"]))
    assert load_config(file, ["curriculum=elsewhere:mix"]).curriculum.folder is None
    named = load_config(file, ["curriculum={function: elsewhere:mix, folder: mine}"])
    assert named.curriculum.folder == str(file.parent / "mine")


def test_a_row_of_a_study_sets_it_and_experts_and_refreshes_go_without(file):
    base = read_document(file, "base")
    rows = {"row": TrainRow(set={"curriculum": None, "schedule": SCHEDULE}), "experts": ExpertsRow(kind="experts")}
    configs, _, problems = build_configs(rows, base, file, read_document(file, "study"), None)
    assert problems == []
    assert configs["row", ""].schedule == parsed(schedule=SCHEDULE).schedule
    assert configs["experts", "math"].curriculum is None
    config = check_document(base, file)
    out = file.parent / "refreshed"
    for replay in (None, 0.2):
        made = refresh_config(config, "pocket", "math", out, RefreshOptions(replay=replay))
        assert (made.curriculum, made.schedule) == (None, ())
