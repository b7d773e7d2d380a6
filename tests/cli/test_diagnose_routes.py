"""``counterpoint diagnose routes`` on the pocket model."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.cli.diagnose.routes import open_edits, parse_edits
from counterpoint.config import load_config
from counterpoint.errors import CounterpointError, ModelError
from counterpoint.pocket import model_path

CONFIG = """
model: pocket
domains: {math: {source: pocket}, qa: {source: pocket}}
training: {max_completion_length: 6}
run: {device: cpu}
"""
FEW = ("--prompts", "4", "--samples", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration, and two checkpoints whose edits oppose each other."""
    path = tmp_path_factory.mktemp("routes")
    (path / "two.yaml").write_text(CONFIG)
    model = AutoModelForCausalLM.from_pretrained(model_path())
    torch.manual_seed(0)
    edit = {name: 0.01 * torch.randn_like(p) for name, p in model.named_parameters()}
    for sign, name in ((1, "math"), (-2, "qa")):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter += sign * edit[key]
        model.save_pretrained(path / name)
    return path


def diagnose(*arguments):
    return CliRunner().invoke(app, ["diagnose", "routes", *map(str, arguments)])


def test_tables_and_json(folder, tmp_path):
    target = tmp_path / "routes.json"
    edits = ("--edit", f"math={folder / 'math'}", "--edit", f"qa={folder / 'qa'}")
    result = diagnose("pocket", folder / "two.yaml", *FEW, *edits, "--json", target)
    assert result.exit_code == 0, result.output
    assert "top 10% of 2,048 neurons and 24 heads, on completion tokens" in result.stdout
    assert "math - qa" in result.stdout
    assert "conflict" in result.stdout
    assert "are not neutral; noise would give up to" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 100
    found = json.loads(target.read_text())
    assert (found["schema"], found["version"]) == ("counterpoint.diagnosis.routes", 1)
    assert {r["domain"]: r["completions"] for r in found["routes"]} == {"math": 8, "qa": 8}
    assert found["directions"][0]["cosine"]["value"] == pytest.approx(-1, abs=1e-3)

    again = tmp_path / "again.json"
    saved = tmp_path / "routes.json.completions.jsonl"
    result = diagnose("pocket", folder / "two.yaml", "--completions", saved, *edits, "--json", again)
    assert result.exit_code == 0, result.output
    assert "sample" not in result.stdout
    assert json.loads(again.read_text()) == found

    result = diagnose("pocket", folder / "two.yaml", "--completions", saved, *edits, "--fraction", "0.7")
    assert "heads (" in result.stdout, "enough of them for a direction"
    assert "…" not in result.stdout, "a sixth fraction fits as well"


def test_options_reach_the_measurement(folder, tmp_path):
    target = tmp_path / "routes.json"
    options = ("--fraction", "0.25", "--per-layer", "--tokens", "all", "--domain", "qa", "--batch-size", "3")
    result = diagnose("pocket", folder / "two.yaml", *FEW, *options, "--json", target)
    assert result.exit_code == 0, result.output
    found = json.loads(target.read_text())
    assert (found["fraction"], found["per_layer"], found["tokens"]) == (0.25, True, "all")
    assert [len(units) for units in found["routes"][0]["neurons"].values()] == [128] * 4
    assert found["overlaps"] == found["directions"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fraction", "2"), "--fraction 2.0: a route's share must be above 0"),
        (("--domain", "mth"), "did you mean 'math'"),
        (("--edit", "math"), "write DOMAIN=CHECKPOINT"),
        (("--edit", "code=x", "--edit", "qa=y"), "there is no domain 'code' here"),
        (("--edit", "math=pocket"), "needs the edits of two domains"),
        (("--edit", "math=a", "--edit", "math=b"), "'math' has an edit already, a"),
        (("--base", "pocket"), "--base is given without --edit"),
        (("--edit", "math=pocket", "--edit", "qa=pocket", "--base", "qq=x"), "no domain 'qq' here; did you mean 'qa'"),
    ],
)
def test_mistakes_are_said_before_anything_is_sampled(folder, arguments, message):
    result = diagnose("pocket", folder / "two.yaml", *arguments)
    assert isinstance(result.exception, CounterpointError)
    assert message in str(result.exception)
    assert "sample" not in result.output


def test_every_domain_has_its_base(folder):
    config = load_config(folder / "two.yaml")
    values = [f"math={folder / 'math'}", f"qa={folder / 'qa'}"]
    name = "model.layers.0.mlp.up_proj.weight"
    plain = open_edits(config, values, [], list(config.domains))
    chained = open_edits(config, values, [f"qa={folder / 'math'}"], list(config.domains))
    torch.testing.assert_close(chained["math"][name], plain["math"][name])
    torch.testing.assert_close(chained["qa"][name], -2 * plain["math"][name], rtol=1e-3, atol=1e-6)
    with pytest.raises(ModelError, match="no such folder"):
        open_edits(config, [values[0], "qa=/nowhere"], [], list(config.domains))


def test_parsing_keeps_paths_with_equals_signs():
    assert parse_edits(["math=/a/lr=1/b"], ["math"]) == {"math": "/a/lr=1/b"}


def test_the_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from counterpoint.cli.app import app; "
        "result = CliRunner().invoke(app, ['diagnose', 'routes', '--help']); "
        "sys.exit(result.exit_code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
