"""``counterpoint diagnose conflicts`` from the command line."""

import json

import pytest
import torch
from typer.testing import CliRunner

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
    found = run(
        "pocket", config, "--completions", completions, "--batches", 4, "--repeats", 2, "--json", tmp_path / "c.json"
    )
    assert found.exit_code == 0, found.exception
    assert "(module, pair of domains) combinations conflict beyond noise" in found.output
    assert "Control, shuffled labels: 0 conflicts" in found.output
    assert "math - code" in found.output
    assert "math 5 prompts (10 completions)" in found.output
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["schema"] == "counterpoint.diagnosis.conflicts"
    assert written["domains"] == ["math", "code"]
    assert "…" not in found.output, "nothing is cut in 80 columns"


def test_over_the_steps_of_a_run(tmp_path):
    gram = torch.eye(2).repeat(40, 2, 1, 1)
    gram[:, 0, 0, 1] = gram[:, 0, 1, 0] = -0.3 + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    write_grams(tmp_path / "grams.jsonl", gram, ["layers.0.mlp", "norm"], ["code", "math"])
    found = run("--run", tmp_path, "--json", tmp_path / "c.json")
    assert found.exit_code == 0, found.exception
    assert "Over 40 recorded steps, 1 of 1 (module, pair of domains) combinations conflict" in found.output
    assert "layers.0.mlp" in found.output
    assert "1 more cannot be told: in too few steps both domains have a gradient (16 are needed)." in found.output
    assert json.loads((tmp_path / "c.json").read_text())["schema"] == "counterpoint.diagnosis.conflicts_over_time"


def test_refusals_before_any_model_is_loaded(config, completions, tmp_path):
    assert "Give a model and a configuration" in refused()
    assert "Give a model and a configuration" in refused("pocket")
    assert "takes no model; found 'pocket'" in refused("pocket", config, "--run", tmp_path)
    assert "there are no Grams here" in refused("--run", tmp_path)
    assert "at least 4 splits are needed" in refused("pocket", config, "--batches", 3)
    assert "there is no optimizer.pt here" in refused("pocket", config, "--optimizer", tmp_path)
    assert "is no rate" in refused("pocket", config, "--level", 5)
    assert "records its Grams by module" in refused("--run", tmp_path, "--by", "tensor")
    assert "did you mean 'math'" in refused("pocket", config, "--domain", "maths", "--domain", "code")
    assert "found --domain math alone" in refused("pocket", config, "--domain", "math")


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
    short = (
        folder,
        config,
        "--completions",
        completions,
        "--batches",
        4,
        "--repeats",
        2,
        "--json",
        tmp_path / "c.json",
    )

    def metrics(*more):
        found = run(*short, *more)
        assert found.exit_code == 0, found.exception
        return [one["metric"] for one in json.loads((tmp_path / "c.json").read_text())["metrics"]], found.stderr

    assert metrics()[0] == ["gradient", "adam"]
    assert metrics("--no-adam")[0] == ["gradient"]
    torch.save({"state": {}, "param_groups": [{"params": [0]}]}, folder / "optimizer.pt")
    found, said = metrics()
    assert found == ["gradient"]
    assert "Not measured after Adam: The optimizer state is of 1 parameters and the model trains" in said
    assert "The optimizer state is of 1 parameters" in refused(*short, "--optimizer", folder)
