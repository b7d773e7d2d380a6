"""The commands: their options, where results go, what people read, and exit statuses."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from counterpoint.cli.rollback import default_place, numbers
from counterpoint.cli.rollback_tables import print_rollback
from counterpoint.errors import CounterpointError
from counterpoint.recovery import Rollback, RollbackOptions
from counterpoint.recovery.rolling_back.results import Chosen, Reported, Split, Trial
from counterpoint.recovery.rolling_back.verdict import verdict_of
from counterpoint.stats import Estimate


def test_numbers_are_shares_or_percentages():
    assert numbers("--budgets", "0.01, 0.1") == (0.01, 0.1)
    assert numbers("--budgets", "1%,0.5%") == (0.01, 0.005)
    with pytest.raises(CounterpointError, match="--budgets a lot: write numbers with commas"):
        numbers("--budgets", "a lot")


def test_the_result_goes_into_the_run_or_beside_the_folder(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    assert default_place(str(checkpoint), Path("x")) == tmp_path / "run" / "recovery" / "rollback.json"
    assert default_place(str(tmp_path / "run"), Path("out/x")) == Path("out/x.rollback.json")
    assert default_place("org/model", Path("out")) == Path("out.rollback.json")


def estimate(value, half=0.05):
    return Estimate(value, value - half, value + half)


def row(name, math, change, draw=None):
    return Reported(
        name, draw, {"math": estimate(math), "qa": estimate(0.5)}, {"math": estimate(change), "qa": estimate(0.0)}
    )


ENDS = (row("before", 0.8, 0.3), row("after", 0.5, 0.0))


def result(**changes):
    trials = (
        Trial("after", None, 0.0, 0.0, 0, {"math": 0.5, "qa": 0.5}, 0.5),
        Trial("rollback", None, 0.01, 0.5, 10, {"math": 0.7, "qa": 0.5}, 0.6),
        Trial("random", 0, 0.01, 0.5, 10, {"math": 0.5, "qa": 0.5}, 0.5),
    )
    fields = {
        "num_weights": 1000,
        "selection": Split(8, 2, "training rows"),
        "test": Split(9, 4, "held-out rows"),
        "damage": estimate(-0.3),
        "tried": trials,
        "chosen": Chosen(0.01, 0.5, 10),
        "reported": (*ENDS, row("rollback", 0.7, 0.2), row("random", 0.5, 0.0, 0)),
        "restored": estimate(0.67),
        "restored_random": estimate(0.0),
        "beyond_random": {"math": estimate(0.2), "qa": estimate(0.0)},
    } | changes
    found = Rollback("b", "c", "math", None, RollbackOptions(), **fields)
    return Rollback(**(vars(found) | {"verdict": verdict_of(found)}))


def printed(found):
    stream = io.StringIO()
    print_rollback(found, Console(file=stream, width=120))
    return stream.getvalue()


def test_the_tables_and_the_verdict_say_what_happened():
    text = " ".join(printed(result()).split())
    assert "training rows: 8 prompts a domain, 2 samples" in text
    assert "1.00% │ 50% │ 0.700 │ 0.600 │ 0.500 │ 0.500" in text
    assert "Moving 1.00% of the weights back 50% of the way changes it by +0.200 [+0.150, +0.250]" in text
    assert "67% [62%, 72%] of the loss" in text
    assert "That is more than what as many random weights do (1 draw)" in text
    assert "The other domains (qa) stay within noise." in text


def test_a_change_within_noise_is_called_that():
    rows = (*ENDS, row("rollback", 0.51, 0.01), row("random", 0.5, 0.0, 0))
    text = verdict_of(result(reported=rows, beyond_random={"math": estimate(0.01), "qa": estimate(0.0)}))
    assert "that is within noise" in text
    assert "not told apart from" in text


def test_a_loss_without_a_known_size_has_no_interval():
    found = result(restored=Estimate(0.4, float("-inf"), float("inf")))
    assert "about 40% of the loss" in found.verdict


def test_other_domains_that_moved_are_named():
    moved = Reported(
        "rollback", None, {"math": estimate(0.7), "qa": estimate(0.3)}, {"math": estimate(0.2), "qa": estimate(-0.2)}
    )
    rows = (*ENDS, moved, row("random", 0.5, 0.0, 0))
    assert "Other domains: qa -0.200 [-0.250, -0.150]." in verdict_of(result(reported=rows))


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "counterpoint", *arguments], capture_output=True, text=True, check=False
    )


def test_a_mistake_is_one_message(tmp_path):
    result = run(
        "rollback", "--before", "a/b/c", "--after", "d", "--domain", "math", "-o", "x", str(tmp_path / "no.yaml")
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_recover_wants_a_run(tmp_path):
    result = run("recover", str(tmp_path), "--dry-run")
    assert result.returncode == 1
    assert "there is no run here" in result.stderr
