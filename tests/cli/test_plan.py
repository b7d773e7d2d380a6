"""``counterpoint plan`` as a reader runs it."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from counterpoint.cli._weights import read_lengths
from counterpoint.cli.plan import plan
from counterpoint.errors import ConfigError, StrategyError
from planted_runs import write_run

ROOT = Path(__file__).parents[2]
WIDTH = 100


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(plan)
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env={"COLUMNS": str(WIDTH)})


def test_both_back_ends_side_by_side(command):
    result = command("8B", "--gpus", "8", "--domains", "3")
    assert result.exit_code == 0
    for text in (
        "8,030,261,248 trained",
        "DDP",
        "FSDP2",
        "surgery: 2 more gradients",
        "do not fit",
    ):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= WIDTH


def test_one_gpu(command):
    result = command("0.5B")
    assert "one process" in result.stdout
    assert "1 more gradient on the device" in result.stdout


def test_a_configuration_says_it_all(command, tmp_path):
    file = tmp_path / "plan.json"
    result = command(str(ROOT / "examples" / "pocket-pcgrad.yaml"), "--gpus", "2", "--json", str(file))
    assert result.exit_code == 0
    found = json.loads(file.read_text())
    assert (found["model"], found["strategy"], found["domains"], found["groups"]) == ("pocket", "pcgrad", 4, 1)
    assert "per GPU, MiB" in result.stdout


def test_buffers_and_reductions_of_a_configuration(command, tmp_path):
    file, config = tmp_path / "plan.json", tmp_path / "my.yaml"
    extra = "  accelerator_config: {gradient_accumulation_kwargs: {sync_each_batch: true}}\nsurgery: {buffers: cpu}\n"
    domains = "domains:\n  math: {source: pocket}\n  code: {source: pocket}\n"
    config.write_text(f"model: pocket\n{domains}training:\n  gradient_accumulation_steps: 6\n{extra}")
    assert command(str(config), "-n", "2", "--json", str(file)).exit_code == 0
    found = json.loads(file.read_text())
    assert found["micro_batches"] == 6
    assert {(rank["buffers"], rank["sync_each_batch"]) for rank in found["backends"]} == {("cpu", True)}


def test_options_come_before_the_configuration(command, tmp_path):
    file = tmp_path / "plan.json"
    command(str(ROOT / "examples" / "pocket-mgs.yaml"), "-d", "2", "-s", "mgs-tensor", "--json", str(file))
    found = json.loads(file.read_text())
    assert (found["strategy"], found["domains"]) == ("mgs-tensor", 2)


def test_stages_hold_one_domain_each(command, tmp_path):
    file = tmp_path / "plan.json"
    command(str(ROOT / "examples" / "pocket-sequential.yaml"), "--json", str(file))
    found = json.loads(file.read_text())
    assert (found["domains"], found["backends"][0]["surgery"]) == (1, 0)


LENGTHS = "math=40,code=10,qa=10,writing=60"


def test_given_lengths_say_what_the_domains_weigh(command):
    result = command(str(ROOT / "examples" / "pocket-mgs.yaml"), "--lengths", LENGTHS)
    assert result.exit_code == 0
    assert "What a domain weighs under dapo" in result.stdout
    assert "code has 25% of the prompts and 8% of the loss" in result.stdout
    assert "balance: tokens" in result.stdout


def test_a_schedule_and_a_curriculum_are_said_beside_what_holds_at_the_start(command, tmp_path):
    base = (ROOT / "examples" / "pocket-mgs.yaml").read_text()
    changes = {"schedule": "[{step: 5, weights: {qa: 2.0}}]", "curriculum": "mine:mix"}
    for key, value in changes.items():
        path = tmp_path / f"{key}.yaml"
        path.write_text(f"{base}\n{key}: {value}\n")
        said = command(str(path), "--lengths", LENGTHS).output
        assert ("step 5 weights qa 2" in said) == (key == "schedule")
        assert ("mine:mix" in said) == (key == "curriculum")


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ("math=40", "no length for code, qa, writing"),
        (f"{LENGTHS},maths=3", "did you mean 'math'"),
        ("math=many", "'math=many' is no length"),
        ("math", "'math' is no length"),
        ("math=0", "'math=0' is no length"),
    ],
)
def test_lengths_that_say_nothing_are_refused(lengths, message, command):
    result = command(str(ROOT / "examples" / "pocket-mgs.yaml"), "--lengths", lengths)
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)


def test_lengths_need_the_shares_of_a_configuration(command):
    assert "no counterpoint configuration" in str(command("8B", "--lengths", LENGTHS).exception)


def test_lengths_come_from_a_run(tmp_path):
    run = write_run(tmp_path / "before", {"math": [0.2, 0.3, 0.3], "chat": [0.5, 0.6, 0.6]})
    lines = [{"step": step, "completion_length/math": 10 * step, "completion_length/chat": 80} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_lengths(str(run), ["math", "chat"]) == {"math": 20, "chat": 80}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["pocket", "-n", "8", "--shards", "3"], ConfigError, "8 GPUs cannot be cut into replicas of 3"),
        (["pocket", "-s", "sequential"], StrategyError, "trains one domain after another"),
    ],
)
def test_mistakes(command, arguments, error, message):
    result = command(*arguments)
    assert isinstance(result.exception, error)
    assert message in str(result.exception)
