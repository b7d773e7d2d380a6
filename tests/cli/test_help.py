"""Every help text answers at once and teaches; nothing heavy is imported for it."""

import subprocess
import sys
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from commands import counterpoint
from counterpoint import __version__
from counterpoint.cli.app import app

COMMANDS = [
    ["train"],
    ["eval"],
    ["compare"],
    ["score"],
    ["report"],
    ["demo"],
    ["config"],
    ["config", "check"],
    ["config", "schema"],
    ["plan"],
    ["verify"],
    ["recover"],
    ["study"],
    ["merge"],
    ["diagnose"],
]

OURS = [[name] for name in ("train", "demo", "report", "eval", "compare", "merge", "plan", "score", "verify", "study")]
OURS += [["config", "check"], ["recover"]]


def test_help_explains_every_command_without_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from counterpoint.cli.app import app\n"
        f"for command in {[[], *COMMANDS]!r}:\n"
        "    result = CliRunner().invoke(app, [*command, '--help'])\n"
        "    heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "    assert result.exit_code == 0 and not heavy, (command, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_no_line_of_a_paragraph_ends_before_it_must(command, width, monkeypatch):
    """A torn paragraph has a line that ends although the next word would have fitted."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    output = CliRunner().invoke(app, [*command, "--help"]).output
    prose = output[output.index("Usage:") : output.index("\u256d")].splitlines()[1:]
    for line, following in pairwise(prose):
        if line.strip() and following.strip() and not following.startswith("  "):  # examples are indented
            assert len(line.rstrip()) + 1 + len(following.split()[0]) >= width - 1, line


def test_commands_stand_in_panels_in_the_order_of_their_use():
    output = CliRunner().invoke(app, ["--help"]).output
    panels = [output.index(f"\u2500 {name} \u2500") for name in ("Train", "Look", "Repair", "Compare", "Tools")]
    assert panels == sorted(panels)


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.output.strip() == f"counterpoint {__version__}"


def test_the_help_lists_every_command():
    output = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command[0] in output


def test_a_users_mistake_is_one_message_and_no_traceback(tmp_path):
    command = [sys.executable, "-m", "counterpoint", "train", str(tmp_path / "absent.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "there is no such configuration file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [[], ["a.yaml", "--resume", "runs/x"]])
def test_train_wants_a_configuration_or_a_run(arguments):
    result = counterpoint("train", *arguments)
    assert result.returncode == 1
    assert "either a configuration file or --resume RUN" in result.stderr


def test_all_problems_of_a_file_are_told_at_once_settings_of_trl_included(tmp_path):
    path = tmp_path / "bad.yaml"
    lines = [
        "model: pocket",
        "strategy: msg",
        "domains:",
        "  math: {source: pocket, shar: 2}",
        "training: {max_stepz: 3}",
    ]
    path.write_text("\n".join(lines))
    result = counterpoint("config", "check", path)
    assert result.returncode == 1
    assert "3 problems" in result.stderr
    for problem in (
        f"{path}:2: strategy.name: unknown strategy 'msg': did you mean 'mgs'?",
        f"{path}:4: domains.math.shar: unknown key. did you mean 'share'?",
        f"{path}:5: training.max_stepz: not a setting of trl.GRPOConfig; did you mean 'max_steps'?",
    ):
        assert problem in result.stderr
