"""``counterpoint diagnose conflicts`` from the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from counterpoint import diagnosis
from counterpoint.cli.app import app
from counterpoint.config import ModelConfig
from counterpoint.diagnosis.rollouts import Rollout, Rollouts, save_rollouts, with_advantages
from counterpoint.errors import CounterpointError
from counterpoint.models import load_model
from gram_files import write_grams

CONFIG = """
model: pocket
strategy: mgs
domains:
  math: {source: pocket}
  code: {source: pocket}
training: {max_steps: 1, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 8}
"""


def run(*arguments):
    return CliRunner().invoke(app, ["diagnose", "conflicts", *map(str, arguments)])


def refused(*arguments):
    error = run(*arguments).exception
    assert isinstance(error, CounterpointError), error
    return str(error)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def completions(tmp_path):
    generator = torch.Generator().manual_seed(0)
    domains = []
    for name in ("math", "code"):
        ids = torch.randint(4, 90, (5, 2, 6), generator=generator).tolist()
        items = [
            Rollout(g, tuple(ids[g][i][:3]), tuple(ids[g][i][3:]), float(i), 0.0) for g in range(5) for i in (0, 1)
        ]
        domains.append(Rollouts(name, with_advantages(items)))
    save_rollouts(tmp_path / "completions.jsonl", *domains)
    return tmp_path / "completions.jsonl"


def test_the_sentence_the_tables_and_the_json(config, completions, tmp_path):
    found = run("pocket", config, "--completions", completions, "--batches", 4, "--json", tmp_path / "c.json")
    assert found.exit_code == 0, found.exception
    output = " ".join(found.output.split())
    assert "(module, pair of domains) combinations conflict beyond noise" in output
    assert "Control: 0 conflicts" in output
    assert "math - code" in output
    assert "math 5 prompts (10 completions)" in output
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["schema"] == "counterpoint.conflicts"
    assert written["domains"] == ["math", "code"]
    assert "…" not in found.output, "nothing is cut in 80 columns"


def test_over_the_steps_of_a_run(tmp_path):
    gram = torch.eye(2).repeat(40, 2, 1, 1)
    gram[:, 0, 0, 1] = gram[:, 0, 1, 0] = -0.3 + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    write_grams(tmp_path / "grams.jsonl", gram, ["layers.0.mlp", "norm"], ["code", "math"])
    found = run("--run", tmp_path, "--json", tmp_path / "c.json")
    assert found.exit_code == 0, found.exception
    output = " ".join(found.output.split())
    assert "Over 40 recorded steps, 1 of 1 (module, pair of domains) combinations conflict" in output
    assert "layers.0.mlp" in output
    assert "1 more cannot be known" in output
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "counterpoint.conflicts_over_time"


def test_refusals_before_any_model_is_loaded(config, tmp_path):
    assert "Give a model and a configuration" in refused()
    assert "Give a model and a configuration" in refused("pocket")
    assert "there are no Grams here" in refused("--run", tmp_path)
    assert "batches=3 cannot tell conflict from noise" in refused("pocket", config, "--batches", 3)
    assert "records its Grams by module" in refused("--run", tmp_path, "--by", "tensor")


def test_from_python_a_configuration_and_a_model_are_enough(config, completions):
    found = diagnosis.conflicts(config, "pocket", batches=4, completions=completions)
    assert found.by == "module", "the grouping of mgs"
    assert found.verdict("layers.1.mlp", "math", "code") == "within noise"
    with pytest.raises(CounterpointError, match="Name another"):
        diagnosis.conflicts(config, "pocket", domains=["math"])
    with pytest.raises(CounterpointError, match="did you mean 'math'"):
        diagnosis.conflicts(config, "pocket", domains=["maths", "code"])


def test_the_configurations_own_grouping_is_what_tables_show(config, completions):
    config.write_text(CONFIG.replace("strategy: mgs", "strategy: mgs-tensor"))
    found = diagnosis.conflicts(config, "pocket", batches=4, completions=completions)
    assert found.by == "tensor"
    assert "tensor, pair of domains" in str(found)


def test_too_few_completions_say_how_many_are_needed(config, completions):
    assert "at least 16 are needed" in refused("pocket", config, "--completions", completions)


def adam_of(model):
    """Adam's state after one step on every weight."""
    params = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer.state_dict()


def test_after_adam_where_the_model_has_its_state(config, completions, tmp_path):
    model, folder = load_model(ModelConfig(path="pocket")), tmp_path / "step-1"
    model.save_pretrained(folder)
    torch.save(adam_of(model), folder / "optimizer.pt")
    found = diagnosis.conflicts(config, folder, batches=4, completions=completions)
    assert [one.metric for one in found.metrics] == ["gradient", "adam"]
    assert found.note == ""
    torch.save({"state": {}, "param_groups": [{"params": [0]}]}, folder / "optimizer.pt")
    found = diagnosis.conflicts(config, folder, batches=4, completions=completions)
    assert [one.metric for one in found.metrics] == ["gradient"]
    assert "Not measured after Adam: The optimizer state is of 1 parameters and the model trains" in str(found)
