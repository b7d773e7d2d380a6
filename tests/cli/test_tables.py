"""The table after training: every domain before and after, the functions of its reward below it."""

import io

import pytest
from rich.console import Console

from counterpoint.cli._console import ConsoleReporter
from counterpoint.cli.train import run_table, weights_advice, weights_table
from counterpoint.config import parse_config
from counterpoint.evaluation import DomainScore
from counterpoint.runs import RunDirectory
from counterpoint.runs.run import Run
from counterpoint.runs.weights import mean_weights


def score(mean, parts=None, unscored=0, metrics=None):
    fixed = ("math", mean, mean, mean, None, 1, 1, 3.0, 0.0, 0.1, (mean,))
    return DomainScore(*fixed, parts or {}, unscored, metrics=metrics or {})


def test_the_parts_of_a_reward_stand_below_their_domain(tmp_path):
    run = RunDirectory.create(tmp_path / "run", parse_config({"domains": {"math": {"source": "pocket"}}}))
    for step, when, form in ((0, "before", 0.125), (3, "after", None)):
        line = score(0.5, {"right": 0.25, "form [x]": form}, metrics={"copying": form}).to_json()
        run.append_eval({"step": step, "when": when, "stage": None} | line)
    console = Console(file=io.StringIO(), width=100)
    console.print(run_table(run))
    rows = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    run.close()
    assert any(row[-2:] == ["0.250", "0.250"] and "right" in row for row in rows)
    assert any(row[-2:] == ["0.125", "-"] and "[x]" in row for row in rows)
    assert any(row[-4:] == ["metric", "copying", "0.125", "-"] for row in rows)


@pytest.mark.parametrize(("balance", "advised"), [("none", True), ("tokens", False)])
def test_what_the_domains_weighed_stands_below_with_advice_where_nothing_balances(balance, advised, tmp_path):
    domains = {name: {"source": "pocket"} for name in ("math", "qa")}
    run = RunDirectory.create(tmp_path / "run", parse_config({"domains": domains, "balance": balance}))
    assert weights_table(tuple(domains), {}) is None
    assert weights_advice(run.config_path, {}) is None
    for step, weight in ((1, 0.1), (2, 0.2)):
        shares = {"share_prompts/math": 0.5, "share_prompts/qa": 0.5, "share_update/math": 1.2, "share_update/qa": -0.2}
        run.append_metrics({"step": step, "effective_weight/math": weight, "effective_weight/qa": 1 - weight} | shares)
    console = Console(file=io.StringIO(), width=100)
    found = mean_weights(Run.open(run.path).metrics)
    console.print(weights_table(tuple(domains), found))
    rows = [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]
    assert ["math", "50", "15", "120"] in rows
    assert ["qa", "50", "85", "-20"] in rows
    assert bool(weights_advice(run.config_path, found)) is advised
    assert weights_advice(run.config_path, {"prompts": found["prompts"]}) is None  # no token was in a loss
    run.close()


def test_an_evaluation_is_told_with_its_parts_and_what_was_not_scored():
    console = Console(file=io.StringIO(), width=200)
    ConsoleReporter(console).evaluated("after", 3, [score(0.5, {"right": 0.25, "form": None}, 2, {"copying": 0.75})])
    told = "math 0.500 [0.500, 0.500] (right 0.250, form -, 2 not scored, metric copying 0.750)"
    assert told in console.file.getvalue()
