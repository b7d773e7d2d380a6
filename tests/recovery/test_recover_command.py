"""The command: its two forms, what people read, and exit statuses."""

import pytest
from typer.testing import CliRunner

from commands import counterpoint
from counterpoint.cli._console import numbers
from counterpoint.cli.app import app
from counterpoint.errors import CounterpointError


def test_numbers_are_shares_or_percentages():
    assert numbers("--budgets", "0.01, 0.1") == (0.01, 0.1)
    assert numbers("--budgets", "1%,0.5%") == (0.01, 0.005)
    with pytest.raises(CounterpointError, match="--budgets a lot: write numbers with commas"):
        numbers("--budgets", "a lot")


def test_the_help_reads_well_in_a_narrow_terminal():
    lines = CliRunner().invoke(app, ["recover", "--help"], terminal_width=80).output.splitlines()
    assert max(map(len, lines)) <= 80
    text = [line.strip() for line in lines]
    start = next(i for i, line in enumerate(text) if line.startswith("A rollback moves weights back"))
    assert all(len(line) > 55 for line in text[start : start + 3]), "no paragraph is torn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["no.yaml", "--after", "d", "--before", "a/b/c", "--domain", "math", "--how", "rollback"],
            "no such configuration",
        ),
        (["no.yaml", "--after", "d"], "--after: say which --domain"),
        (["no.yaml", "--after", "d", "--domain", "math", "--how", "rollback"], "give --before"),
        (["no.yaml", "--after", "d", "--dry-run"], "--dry-run reads what a run lost"),
        ([".", "--dry-run"], "there is no run here"),
    ],
)
def test_a_mistake_is_one_message(tmp_path, arguments, message):
    result = counterpoint("recover", *arguments)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
