"""``counterpoint compare`` and ``eval``: checkpoints on the same held-out prompts, evaluated once and paired."""

import json

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from counterpoint.checkpoints import open_checkpoint, write_checkpoint
from counterpoint.cli.app import app
from counterpoint.config import parse_config
from counterpoint.engine import compare_checkpoints, evaluate
from counterpoint.errors import ConfigError
from counterpoint.evaluation.comparison import compare_scores
from counterpoint.pocket import model_path
from counterpoint.runs import RunDirectory
from counterpoint.stats import Estimate, difference_interval, mean_of_independent

CONFIG = {
    "model": "pocket",
    "domains": {"math": {"source": "pocket", "share": 0.9}, "qa": {"source": "pocket"}},
    # A batch of 3 holds neither these shares nor whole groups of 8: training would refuse it.
    "training": {"per_device_train_batch_size": 3, "max_completion_length": 8},
    "evaluation": {"prompts": 16, "samples": 2, "greedy": False},
}


FEW = CONFIG | {"evaluation": {"prompts": 4, "samples": 1, "greedy": False}}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The pocket model with its MLPs zeroed."""
    folder, base = tmp_path_factory.mktemp("models") / "damaged", open_checkpoint("pocket")
    return write_checkpoint(folder, base, lambda name: base.tensor(name) * (".mlp." not in name))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(json.dumps(CONFIG))
    return path


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def counted(monkeypatch):
    """Names of the models that were loaded."""
    loaded, real = [], evaluate.load_model
    monkeypatch.setattr(evaluate, "load_model", lambda model: (loaded.append(model.path), real(model))[1])
    return loaded


def test_differences_are_paired_and_only_what_is_new_or_changed_is_evaluated(config, damaged, tmp_path, counted):
    out = tmp_path / "out"
    shown = command("compare", config, "pocket", damaged, "-o", out)
    assert counted == ["pocket", str(damaged)]
    assert "damaged against pocket: lower on average, -0." in " ".join(shown.split())
    again = command("compare", config, "pocket", damaged, "-o", out)
    assert len(counted) == 2
    for output in (shown, again):
        assert f"Page: {out / 'compare.html'}" in output
    found = json.loads((out / "compare.json").read_text())
    scores = {
        path.name.split("-")[0]: {line["domain"]: line["scores"] for line in json.loads(path.read_text())["scores"]}
        for path in (out / "scores").iterdir()
    }
    (cell,) = (c for c in found["cells"] if (c["checkpoint"], c["domain"]) == ("damaged", "math"))
    expected = difference_interval(scores["pocket"]["math"], scores["damaged"]["math"], 1 - 0.05 / 3)
    assert (cell["change"]["value"], cell["change"]["low"]) == pytest.approx((expected.value, expected.low))
    assert found["schema"] == "counterpoint.comparison"
    for name in ("html", "md", "tex", "csv"):
        assert "damaged" in (out / f"compare.{name}").read_text()
    weights = damaged / "model.safetensors"
    kept = weights.read_bytes()
    try:
        save_file(load_file(model_path() / "model.safetensors"), weights, metadata={"format": "pt"})
        command("compare", config, "pocket", damaged, "-o", out)
        assert counted[2:] == [str(damaged)]
    finally:
        weights.write_bytes(kept)


def test_from_python_it_is_a_frame_and_a_torn_file_of_scores_is_made_again(damaged, tmp_path, counted):
    loaded = parse_config(FEW)
    found = compare_checkpoints(loaded, ["pocket", damaged], cache=tmp_path)
    frame = found.to_frame()
    assert list(frame["domain"]) == ["math", "qa", "average"] * 2
    assert frame["change"].isna().sum() == 3
    for path in tmp_path.iterdir():
        path.write_text(path.read_text()[:-20])
    assert compare_checkpoints(loaded, ["pocket", damaged], cache=tmp_path) == found
    assert len(counted) == 4


def test_eval_scores_one_model_and_refuses_two(config, tmp_path):
    config.write_text(json.dumps(FEW))
    shown = command("eval", config, "--model", "pocket", "-o", tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["domain"] for line in lines] == ["math", "qa"]
    assert f"{lines[0]['mean']:.3f}" in shown
    with pytest.raises(ConfigError, match=r"found 2 models, and eval takes one.*counterpoint compare .*my.yaml a b"):
        command("eval", config, "--model", "a", "--model", "b")


def test_a_run_gives_its_configuration_and_its_checkpoints(damaged, tmp_path, counted):
    run = tmp_path / "run"
    RunDirectory.create(run, parse_config(FEW)).close()
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "step-2").symlink_to(model_path())
    (run / "checkpoints" / "step-4").symlink_to(damaged)
    shown = command("compare", run, "step-2", "step-4")
    assert "step-4 against step-2" in shown
    assert (run / "compare" / "compare.html").is_file()
    command("eval", run)
    assert counted[-1] == str(run / "checkpoints" / "step-4")
    with pytest.raises(ConfigError, match=r"step-3: no checkpoint of .*; it has: step-2, step-4"):
        command("eval", run, "--model", "step-3")


def test_too_few_and_repeated_checkpoints_are_refused(config):
    with pytest.raises(ConfigError, match=r"a comparison takes two or more.*counterpoint eval .* --model pocket"):
        command("compare", config, "pocket")
    with pytest.raises(ConfigError, match="checkpoints: 'pocket' is given twice"):
        command("compare", config, "pocket", "pocket")


def test_missing_scores_are_missing_and_never_zero():
    found = compare_scores({"a": {"x": [0.5, None], "y": [1.0, 1.0]}, "b": {"x": [None, 0.5], "y": [None, None]}})
    assert found.cell("b", "x").change is None  # no prompt has both
    assert found.cell("b", "y") is None
    assert found.cell("b", "average") is None
    assert found.cell("a", "average").change is None
    assert found.tables()[1].text()[0] == ["x", "-"]


def test_the_interval_of_an_average_of_independent_estimates():
    found = mean_of_independent([Estimate(0.2, 0.1, 0.5), Estimate(0.4, 0.4, 0.8)])
    assert (found.value, found.low, found.high) == pytest.approx((0.3, 0.3 - 0.05, 0.3 + 0.25))
