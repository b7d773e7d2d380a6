"""``counterpoint diagnose routes`` on the pocket model."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.cli.diagnose.routes import parse_edits
from counterpoint.diagnosis import routes
from counterpoint.errors import CounterpointError
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
    assert "top 10% of 2,048 neurons and 24 heads" in result.stdout
    assert "math | qa" in result.stdout
    assert "conflict" in result.stdout
    assert "are not neutral; noise would give up to" in result.stdout
    assert max(map(len, result.stdout.splitlines())) < 100
    found = json.loads(target.read_text())
    assert (found["schema"], found["version"]) == ("counterpoint.routes", 2)
    assert {r["domain"]: r["completions"] for r in found["routes"]} == {"math": 8, "qa": 8}
    assert found["directions"][0]["cosine"]["value"] == pytest.approx(-1, abs=1e-3)

    again = tmp_path / "again.json"
    saved = tmp_path / "routes.json.completions.jsonl"
    result = diagnose("pocket", folder / "two.yaml", "--completions", saved, *edits, "--json", again)
    assert result.exit_code == 0, result.output
    assert "sample" not in result.stdout
    assert json.loads(again.read_text()) == found


def test_options_reach_the_measurement(folder):
    found = routes(folder / "two.yaml", domains=["qa"], prompts=4, samples=2, fraction=0.25, batch_size=3)
    assert found.fraction == 0.25
    assert sum(len(units) for units in found.routes[0].neurons.values()) == 512
    assert found.overlaps == found.directions == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--domain", "mth"), "did you mean 'math'"),
        (("--edit", "math"), "write DOMAIN=AFTER or DOMAIN=BEFORE,AFTER"),
        (("--edit", "math=a,"), "write DOMAIN=AFTER or DOMAIN=BEFORE,AFTER"),
        (("--edit", "code=pocket", "--edit", "qa=pocket"), "a domain 'code' that is not measured"),
        (("--edit", "math=pocket"), "edits has one domain, 'math'"),
        (("--edit", "math=a", "--edit", "math=b"), "'math' has an edit already"),
        (("--edit", "math=pocket", "--edit", "qa=/nowhere"), "no such folder"),
    ],
)
def test_mistakes_are_said_before_anything_is_sampled(folder, arguments, message):
    result = diagnose("pocket", folder / "two.yaml", *arguments)
    assert isinstance(result.exception, CounterpointError)
    assert message in str(result.exception)
    assert "sample" not in result.output


def test_every_domain_may_have_its_own_checkpoint_before(folder):
    edits = {"math": folder / "math", "qa": (folder / "math", folder / "qa")}
    found = routes(folder / "two.yaml", "pocket", edits=edits, prompts=4, samples=2).directions[0]
    assert found.cosine.value == pytest.approx(-1, abs=1e-3)
    edits["qa"] = folder / "qa"  # from the configuration's model: the first edit, minus twice of it
    found = routes(folder / "two.yaml", "pocket", edits=edits, prompts=4, samples=2).directions[0]
    assert found.cosine.value == pytest.approx(-1, abs=1e-3)


def test_parsing_keeps_paths_with_equals_signs():
    assert parse_edits(["math=/a/lr=1/b", "qa=x,y"]) == {"math": "/a/lr=1/b", "qa": ("x", "y")}


def test_the_help_needs_no_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from counterpoint.cli.app import app; "
        "result = CliRunner().invoke(app, ['diagnose', 'routes', '--help']); "
        "sys.exit(result.exit_code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
