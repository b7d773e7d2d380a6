"""``counterpoint diagnose`` shows what was found in a run and in given checkpoints, and by its exit status whether
all of it could be measured.
"""

import json

import pytest
from typer.testing import CliRunner

from counterpoint.cli.app import app
from counterpoint.config import parse_config
from counterpoint.errors import CounterpointError
from diagnosis_models import random_model, save
from planted_runs import STEPS, write_run

PLANTED = {"code": (0.2, 0.8, 0.4), "math": (0.4, 0.4, 0.9)}
CONFIG = {
    "model": "pocket",
    "strategy": {"name": "sequential", "order": list(PLANTED), "steps": STEPS},
    "domains": {name: {"source": "pocket"} for name in PLANTED},
}


def invoke(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture
def run(tmp_path):
    """A run with checkpoints of another architecture than its base: nothing can be measured on them."""
    path = write_run(tmp_path / "run", PLANTED)
    (path / "config.yaml").write_text(parse_config(CONFIG).to_yaml())
    for i, seed in enumerate((1, 2), 1):
        save(path / "checkpoints" / f"step-{STEPS * i}", random_model(seed))
    return path


def test_behaviour_alone_needs_no_checkpoint_and_prints_what_was_planted(tmp_path):
    path = write_run(tmp_path / "run", PLANTED)
    (path / "config.yaml").write_text(parse_config(CONFIG).to_yaml())
    result = invoke(path, "--only", "behaviour")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.output.splitlines() if line.startswith("│ code"))
    written = json.loads((path / "diagnosis" / "behaviour.json").read_text())
    for change in written["changes"][::2]:
        assert f"{100 * change['corrected']['value']:+.0f} [" in row
    assert "code lost" in result.output
    assert f"counterpoint recover {path}" in result.output.replace("\n", "").replace("  ", " ")
    assert max(map(len, result.output.splitlines()[1:8])) <= 80
    assert (path / "report.html").is_file()


def test_an_analysis_that_fails_is_named_and_shows_in_the_exit_status(run):
    result = invoke(run, "--only", "edits")
    assert result.exit_code == 3, result.output
    assert "edits: not measured (" in result.output
    assert "code lost" in result.output, "the others are there"


def test_what_belongs_to_the_other_form_is_refused(run, tmp_path):
    for arguments, message in {
        ("--base", "x"): "--base is for given checkpoints. Give --after too",
        ("--after", "x"): "--after needs --domain",
        ("--after", "x", "--domain", "math", "--alone", f"math={run}"): "--alone compares runs",
        ("--alone", "math"): "write DOMAIN=RUN",
        ("--only", "damages"): "did you mean 'damage'",
    }.items():
        result = invoke(run, *arguments)
        assert isinstance(result.exception, CounterpointError)
        assert message in str(result.exception)


def test_given_checkpoints_get_a_folder_and_a_page(tmp_path):
    (tmp_path / "mine.yaml").write_text(parse_config(CONFIG).to_yaml())
    before, after = (save(tmp_path / name, random_model(i)) for i, name in enumerate(("good", "later")))
    result = invoke(
        tmp_path / "mine.yaml", "--before", before, "--after", after, "--domain", "code", "--only", "edits",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "diagnosis" / "edits.json").read_text())["checkpoints"]
    assert "Given checkpoints" in (tmp_path / "out" / "report.html").read_text()
    assert "code, then later training" in (tmp_path / "out" / "report.html").read_text()
