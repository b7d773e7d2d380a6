"""examples/reward_model.py: its pairs, its configuration, and the whole of it with few steps."""

from pathlib import Path

import pytest

from counterpoint.config import load_config
from scripts import load_script

FILE = Path(__file__).parents[2] / "examples" / "reward_model.py"


@pytest.fixture(scope="module")
def example():
    return load_script(FILE)


def test_the_better_answer_of_a_pair_scores_higher(example):
    pairs = example.make_pairs("test", 6, answers=3)
    assert pairs
    for pair in pairs:
        row = {"prompt": pair["prompt"][0]["content"]}
        better, worse = (example.TASK.score(row, pair[key][0]["content"]) for key in ("chosen", "rejected"))
        assert better > worse


def test_its_configuration_names_the_classifier_beside_it(example, tmp_path):
    (tmp_path / "classifier").mkdir()
    (tmp_path / "writing.yaml").write_text(example.CONFIG)
    config = load_config(tmp_path / "writing.yaml")
    (reward,) = config.domains["writing"].reward
    assert reward.options["model"] == str(tmp_path / "classifier")
    assert [metric.name for metric in config.domains["writing"].metrics] == ["pocket"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_runs_to_its_table(example, tmp_path):
    few = ("training.max_steps=2", "evaluation.prompts=4", "evaluation.samples=2", "evaluation.every=1")
    found = example.main(tmp_path, prompts=32, epochs=1, overrides=few)
    assert 0 <= found["agreement"] <= 1
    assert [step for step, *_ in found["evaluations"]] == [0, 1, 2]
