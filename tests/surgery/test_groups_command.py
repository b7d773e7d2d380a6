"""``counterpoint groups`` on a configuration without weights."""

import json

import pytest
import typer
from typer.testing import CliRunner

from counterpoint.cli.groups import groups
from counterpoint.errors import GroupingError, ModelError


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


def test_no_model(command, tmp_path):
    result = command(str(tmp_path))
    assert isinstance(result.exception, ModelError)
    assert "is no causal language model" in str(result.exception)


def test_unknown_grouping(command, folder):
    result = command(folder, "-g", "modul")
    assert isinstance(result.exception, GroupingError)
