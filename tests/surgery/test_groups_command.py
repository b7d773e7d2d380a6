"""``counterpoint groups`` on a configuration without weights."""

import json

import pytest
import typer
from typer.testing import CliRunner

from counterpoint.cli.groups import groups
from counterpoint.config import ModelConfig
from counterpoint.errors import GroupingError, ModelError
from counterpoint.models import load_model, skeleton
from families import vision_language


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(groups)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": "120"})


@pytest.fixture
def folder(build, tmp_path):
    build("qwen3_moe").config.save_pretrained(tmp_path)
    return str(tmp_path)


def test_json_adds_up(build, command, folder):
    found = json.loads(command(folder, "--json").stdout)
    model = build("qwen3_moe")
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert sum(row["parameters"] for row in found["groups"]) == found["parameters"]
    sizes = {row["group"]: row for row in found["groups"]}
    assert sizes["layers.1.experts.2"] == {"group": "layers.1.experts.2", "tensors": 2, "parameters": 3 * 16 * 12}


def test_table_shows_groups_and_total(command, folder):
    result = command(folder, "--grouping", "layer")
    assert result.exit_code == 0
    assert "layers.1" in result.stdout
    assert "total" in result.stdout


@pytest.mark.filterwarnings("ignore")  # peft's and transformers' own deprecations
def test_lora_groups_hold_adapters_only(command, folder):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    found = json.loads(command(folder, "--lora", "--json").stdout)
    names = {row["group"] for row in found["groups"]}
    assert {"layers.0.attention", "layers.0.experts"} <= names
    assert not names & {"embedding", "norm"}


@pytest.mark.filterwarnings("ignore")  # transformers' own deprecations
def test_vision_language_models_are_built_and_loaded(command, tmp_path):
    model = vision_language()
    model.save_pretrained(tmp_path)
    found = json.loads(command(str(tmp_path), "--json").stdout)
    assert {"layers.1.attention", "visual", "visual.merger"} <= {row["group"] for row in found["groups"]}
    loaded = load_model(ModelConfig(path=str(tmp_path)))
    assert type(loaded) is type(model)
    assert sum(p.numel() for p in skeleton(ModelConfig(path=str(tmp_path))).parameters()) == found["parameters"]


def test_no_model(command, tmp_path):
    result = command(str(tmp_path))
    assert isinstance(result.exception, ModelError)
    assert "is no causal language model" in str(result.exception)


def test_unknown_grouping(command, folder):
    result = command(folder, "-g", "modul")
    assert isinstance(result.exception, GroupingError)
