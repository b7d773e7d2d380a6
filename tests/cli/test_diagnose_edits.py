"""``counterpoint diagnose edits``: tables, JSON and refusals."""

import json

import pytest
import torch
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.errors import ModelError
from diagnosis_models import random_model, save


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = random_model()
    torch.manual_seed(0)
    after = [{k: t + 1e-2 * torch.randn_like(t) for k, t in base.items()} for _ in range(2)]
    after[1]["model.norm.weight"][0] = torch.nan
    folder = tmp_path_factory.mktemp("edits")
    return [str(save(folder / name, t)) for name, t in zip("abc", (base, *after), strict=True)]


def invoke(*arguments):
    return CliRunner().invoke(app, ["diagnose", "edits", *arguments], env={"COLUMNS": "99"}, catch_exceptions=False)


def test_tables_and_json(folders, tmp_path):
    file = tmp_path / "edits.json"
    result = invoke(*folders, "--json", str(file))
    assert result.exit_code == 0
    for words in (
        "Unchanged weights: |edit| < 1e-07 and relative edit < 0.001",
        "layers.1.mlp",
        "Do the 10% most changed neurons overlap?",
        "Do two edits point the same way?",
        "c: NaN or Inf in 1 tensors, left out of every number: model.norm.weight (0 before, 1 after).",
    ):
        assert words in result.output
    data = json.loads(file.read_text())
    assert (data["schema"], data["version"]) == ("counterpoint.edits", 2)
    assert [c["name"] for c in data["checkpoints"]] == ["b", "c"]
    assert {"sparsity", "dtypes", "modules", "neurons", "top"} <= set(data["checkpoints"][0])
    assert {"overlap", "whole", "modules"} <= set(data["pairs"][0])


def test_a_checkpoint_that_equals_the_base_is_said_to(folders):
    result = invoke(folders[0], folders[0])
    assert result.exit_code == 0
    assert "every weight is the same" in result.output


def test_a_chain_names_what_each_is_compared_with(folders):
    assert "c against b" in invoke(*folders, "--chain").output


def test_a_bad_checkpoint_is_one_sentence(folders, tmp_path):
    with pytest.raises(ModelError, match=r"no \.safetensors weights there"):
        invoke(folders[0], str(tmp_path))


def test_tables_fit_a_terminal_and_cut_nothing_off(folders):
    result = CliRunner().invoke(app, ["diagnose", "edits", *folders], env={"COLUMNS": "80"}, catch_exceptions=False)
    tables = result.output.split("c: NaN or Inf")[0]
    assert max(map(len, tables.splitlines())) <= 80
    assert "…" not in tables
    assert "Share of weights whose edit is below ..." in tables
    assert "1e-7" in tables
