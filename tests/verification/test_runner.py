"""The suite can fail, says what failed, and says what it did not run."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from counterpoint.errors import ConfigError, UnsupportedError
from counterpoint.verification import CASES, CONTROLS, Measured, World, open_world, run_suite, select
from counterpoint.verification.case import Tolerances
from counterpoint.verification.table import print_report, report_json, sentence
from ranks_helper import run_ranks

ALONE = World(0, 1, torch.device("cpu"), torch.float64)
CASE = replace(CASES["one process"], plan=replace(CASES["one process"].plan, steps=2))
TOO_STRICT = replace(CASE, tolerances=Tolerances(0, 0, 0, 0))


def _raises_on_all(model, world):
    raise RuntimeError("no such thing here")


def _raises_on_the_second(world):
    if world.rank == 1:
        raise RuntimeError("no such thing there")
    return {"Grams": Measured(1.0, 1e-9)}


def broken():
    cases = {"broken": replace(CASE, spread=_raises_on_all), "whole": CASE}
    bugs = {"torn": replace(CONTROLS["shard-local Grams"], run=_raises_on_the_second)}
    with open_world("cpu", "float64") as world:
        report = run_suite(world, cases, {**bugs, "next": CONTROLS["shard-local Grams"]})
    return [(outcome.name, outcome.status, outcome.note) for outcome in (*report.cases, *report.controls)]


def printed(report):
    console = Console(file=io.StringIO(), width=150)
    print_report(report, console)
    return console.file.getvalue()


def test_an_error_beyond_its_tolerance_fails():
    report = run_suite(ALONE, {"strict": TOO_STRICT}, {})
    assert [outcome.name for outcome in report.failed] == ["strict"]
    assert sentence(report).startswith("Not exact on 1 rank, cpu, float64: 0 of 1 cases held")
    assert "strict: beyond its tolerance" in printed(report)


def test_a_bug_that_is_not_seen_fails():
    blind = replace(CONTROLS["unseeded order"], run=lambda world: {"weights": Measured(1e-9, 1e-10)}, needs=CASE.needs)
    report = run_suite(ALONE, {}, {"blind": blind})
    assert [outcome.name for outcome in report.failed] == ["blind"]
    assert "not seen" in printed(report)


def test_an_error_that_is_no_number_is_not_within_tolerance():
    assert not Measured(float("nan"), 1.0).held
    assert not Measured(float("inf"), 1.0).held


def test_what_breaks_on_all_ranks_is_reported_and_the_next_case_runs_unless_only_some_broke():
    by_rank = run_ranks(broken, 2)
    assert by_rank[0] == by_rank[1]
    assert by_rank[0] == [
        ("broken", "failed", "rank 0: RuntimeError: no such thing here"),
        ("whole", "held", ""),
        ("torn", "failed", "rank 1: RuntimeError: no such thing there"),
        ("next", "not run", "after 'torn' broke off on some ranks"),
    ]


def test_what_needs_more_ranks_is_reported_as_not_run():
    report = run_suite(ALONE, {name: CASES[name] for name in ("ddp", "hsdp")}, CONTROLS)
    assert {outcome.status for outcome in (*report.cases, *report.controls)} == {"not run"}
    assert not report.failed
    text = printed(report)
    assert "Not run, needs 2 ranks: ddp;" in text
    assert "Not run, needs 4 ranks or more, a multiple of 2: hsdp." in text
    assert "0 of 0 cases held (2 not run), in" in sentence(report)


def test_the_numbers_can_be_written_as_json():
    data = report_json(run_suite(ALONE, {"strict": TOO_STRICT}, {}))
    data = json.loads(json.dumps(data, allow_nan=False))
    assert data["exact"] is False
    assert data["dtype"] == "float64"
    assert data["cases"][0]["errors"]["weights"]["tolerance"] == 0


def test_cases_are_selected_by_how_their_names_begin():
    cases, controls = select(["fsdp2", "shard"])
    assert set(cases) == {name for name in CASES if name.startswith("fsdp2")}
    assert set(controls) == {name for name in CONTROLS if name.startswith(("fsdp2", "shard"))}
    assert select([]) == (CASES, CONTROLS)
    with pytest.raises(ConfigError, match=r"No case or planted bug begins with 'fsdp3': did you mean 'fsdp2'\?"):
        select(["fsdp3"])


def test_wrong_places_are_refused():
    with pytest.raises(ConfigError, match="Unknown dtype 'float16'"), open_world("cpu", "float16"):
        pass
    with pytest.raises(UnsupportedError, match=r"The device 'cuda' is not there.*--device cpu"), open_world("cuda"):
        pass
