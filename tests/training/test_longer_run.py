"""A finished run that is made longer has the numbers of one that was that long from the start."""

import pytest
from safetensors.torch import load_file

from counterpoint.config import parse_config
from counterpoint.engine import resume, train
from counterpoint.errors import ConfigError, RunError

CLOCKS = {"time", "step_time", "step_seconds", "seconds", "epoch"}

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def run_of(model, folder, name, steps, strategy="mgs", **recovery):
    return train(
        parse_config(
            {
                "model": str(model),
                "strategy": strategy,
                "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
                "training": {
                    "max_steps": steps,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 2,
                    "num_generations": 4,
                    "max_completion_length": 4,
                    "learning_rate": 1e-3,
                    "lr_scheduler_type": "constant",
                    "gradient_checkpointing": False,
                },
                "evaluation": {"prompts": 4, "samples": 1, "greedy": False},
                "recovery": recovery,
                "run": {"dir": str(folder), "name": name, "save_every": 2, "device": "cpu"},
            }
        ),
        name,
    )


def numbers(run, name, steps):
    rows = [{k: v for k, v in row.items() if k not in CLOCKS} for row in run.lines(name) if row["step"] in steps]
    return sorted(rows, key=lambda row: (row["step"], row.get("domain", "")))


def test_it_has_the_numbers_of_a_long_one(tiny_model, tmp_path):
    long, short = run_of(tiny_model, tmp_path, "long", 4), run_of(tiny_model, tmp_path, "short", 3)
    longer = resume(short.path, longer=["training.max_steps=4"])
    assert numbers(longer, "metrics.jsonl", range(1, 5)) == numbers(long, "metrics.jsonl", range(1, 5))
    assert numbers(longer, "evals.jsonl", (0, 4)) == numbers(long, "evals.jsonl", (0, 4))
    one, other = (load_file(run.checkpoint_path(4) / "model.safetensors") for run in (long, longer))
    assert all((one[name] == other[name]).all() for name in one)
    (stage,) = longer.state["stages"]
    assert (longer.state["status"], longer.state["steps"], stage["last_step"]) == ("done", 4, 4)
    resumed = resume(short.path)  # it is what it says it is, and goes on from there
    assert resumed.state["stages"] == [stage]


def test_a_sequential_run_gets_further_stages(tiny_model, tmp_path):
    order = {"name": "sequential", "order": ["math", "code"], "steps": 1}
    run = run_of(tiny_model, tmp_path, "run", 10, order)
    longer = resume(run.path, longer=["strategy.order=[math, code, math]"])
    assert [(entry["domains"], entry["last_step"]) for entry in longer.state["stages"]] == [
        *((["math"], 1), (["code"], 2), (["math"], 3))
    ]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["training.learning_rate=1"], RunError, "keeps its settings"),
        (["training.max_steps=3"], RunError, "has 4 steps already"),
        (
            ["strategy.order=[code, math]", "training.max_steps=8"],
            RunError,
            "do not begin with the stages that are trained",
        ),
        (["training.max_steps=nine"], ConfigError, "max_steps"),
    ],
)
def test_what_cannot_be_lengthened_is_left_as_it_is(sequential, settings, error, message):
    files = {path: path.read_bytes() for path in sequential.path.iterdir() if path.is_file()}
    with pytest.raises(error, match=message):
        resume(sequential.path, longer=settings)
    assert {path: path.read_bytes() for path in sequential.path.iterdir() if path.is_file()} == files


@pytest.fixture(scope="module")
def sequential(tiny_model, tmp_path_factory):
    return run_of(tiny_model, tmp_path_factory.mktemp("runs"), "run", 4, "sequential")
