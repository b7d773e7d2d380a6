"""``counterpoint merge`` chooses among scales by a configuration's domains; its training batch plays no part."""

import json

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from counterpoint.checkpoints import open_checkpoint, write_checkpoint
from counterpoint.cli.app import app
from counterpoint.pocket import model_path


@pytest.fixture
def expert(tmp_path):
    """The pocket model with an edit that harms it: the smallest scale is the best one."""
    base = open_checkpoint("pocket")
    return write_checkpoint(tmp_path / "expert", base, lambda name: base.tensor(name) * (0.5 if ".mlp." in name else 1))


def _base():
    return load_file(model_path() / "model.safetensors")


def test_the_scale_is_chosen_on_training_prompts_whatever_the_batch_is(expert, tmp_path):
    config = tmp_path / "my.yaml"
    # A batch of 3 holds no whole groups of 8: training would refuse it.
    batch = {"per_device_train_batch_size": 3, "max_completion_length": 8}
    domains = {"math": {"source": "pocket", "share": 0.9}, "qa": {"source": "pocket"}}
    settings = {"model": "pocket", "domains": domains, "training": batch, "evaluation": {"prompts": 4, "samples": 2}}
    config.write_text(json.dumps(settings))
    out = tmp_path / "merged"
    options = ["--method", "average", "--scale", "1,0.01", "--config", config, "--prompts", 16, "-o", out]
    result = CliRunner().invoke(app, ["merge", "pocket", str(expert), *map(str, options)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "scale 0.01: " in result.output
    name = next(name for name in _base() if ".mlp." in name)
    edit = load_file(out / "model.safetensors")[name] - _base()[name]
    assert float(edit.abs().max()) == pytest.approx(0.005 * float(_base()[name].abs().max()), rel=0.05)
