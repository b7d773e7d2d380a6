"""``counterpoint plan --groups``: the groups of a model, from a configuration without weights."""

import json

import pytest
import typer
from typer.testing import CliRunner

from counterpoint.cli.plan import plan
from counterpoint.config import ModelConfig
from counterpoint.errors import GroupingError, ModelError
from counterpoint.models import load_model, skeleton
from families import vision_language


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(plan)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


@pytest.fixture
def groups(command, tmp_path):
    """What ``--json`` writes."""

    def run(model, *arguments):
        file = tmp_path / "groups.json"
        assert command(model, "--groups", "module", "--json", str(file), *arguments).exit_code == 0
        return json.loads(file.read_text())

    return run


@pytest.fixture
def folder(build, tmp_path):
    build("qwen3_moe").config.save_pretrained(tmp_path)
    return str(tmp_path)


def test_json_adds_up(build, groups, folder):
    found = groups(folder)
    model = build("qwen3_moe")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(row["parameters"] for row in found["groups"]) == found["parameters"]
    sizes = {row["group"]: row for row in found["groups"]}
    assert sizes["layers.1.experts.2"] == {"group": "layers.1.experts.2", "tensors": 2, "parameters": 3 * 16 * 12}


def test_table_shows_groups_and_total(command, folder):
    result = command(folder, "--groups", "layer")
    assert result.exit_code == 0
    assert "layers.1" in result.stdout
    assert "total" in result.stdout


@pytest.mark.filterwarnings("ignore")  # peft's and transformers' own deprecations
def test_lora_groups_hold_adapters_only(groups, tmp_path, folder):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    config = tmp_path / "my.yaml"
    lora = f"model: {{path: {folder}, lora: {{target_modules: all-linear}}}}"
    config.write_text(f"{lora}\ndomains:\n  math: {{source: pocket}}\n")
    found = groups(str(config))
    names = {row["group"] for row in found["groups"]}
    assert {"layers.0.attention", "layers.0.experts"} <= names
    assert not names & {"embedding", "norm"}


@pytest.mark.filterwarnings("ignore")  # transformers' own deprecations
def test_vision_language_models_are_built_and_loaded(groups, tmp_path):
    model = vision_language()
    model.save_pretrained(tmp_path)
    found = groups(str(tmp_path))
    assert {"layers.1.attention", "visual", "visual.merger"} <= {row["group"] for row in found["groups"]}
    loaded = load_model(ModelConfig(path=str(tmp_path)))
    assert type(loaded) is type(model)
    assert sum(p.numel() for p in skeleton(ModelConfig(path=str(tmp_path))).parameters()) == found["parameters"]


def test_no_model(command, tmp_path):
    result = command(str(tmp_path), "--groups", "module")
    assert isinstance(result.exception, ModelError)
    assert "is no causal language model" in str(result.exception)


def test_unknown_grouping(command, folder):
    result = command(folder, "--groups", "modul")
    assert isinstance(result.exception, GroupingError)
