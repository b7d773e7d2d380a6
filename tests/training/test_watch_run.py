"""A watched run from end to end: a planted fall is refreshed, the interrupted stage goes on, a kill changes nothing."""

import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from counterpoint.config import parse_config
from counterpoint.engine import resume, train
from counterpoint.evaluation.history import Evaluations
from same_run import lines

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PROMPTS = 24


class Killed(BaseException):
    """Ends a run at once, as a kill would: nothing that handles errors sees it."""


class Killer:
    """A reporter under which the process dies after ``step``."""

    def __init__(self, step):
        self.step, self.said = step, []

    def message(self, text):
        self.said.append(text)

    def evaluating(self, *args):
        pass

    def evaluated(self, *args):
        pass

    def training(self, step, total, metrics):
        if step == self.step:
            raise Killed


def settings(model, folder, name, steps=6, **recovery):
    training = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 4,
        "gradient_checkpointing": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "linear",
    }
    return parse_config(
        {
            "model": str(model),
            "strategy": {"name": "sequential", "order": ["math", "code"], "steps": steps},
            "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
            "training": training,
            "evaluation": {"prompts": PROMPTS, "samples": 1, "greedy": False, "before": False},
            "recovery": {"watch": True, "every": 2, "steps": 5, "refresh_every": 2} | recovery,
            "run": {"dir": str(folder), "name": name, "save_every": 1, "keep": None, "samples": 1, "device": "cpu"},
        }
    )


@contextmanager
def planted():
    """Math scores 0.9 everywhere but at step 4 of the code stage, and at the first look of its refresh."""
    make = Evaluations.make

    def planted_scores(self, trainer, when):
        found = []
        for score in make(self, trainer, when):
            step, trained = trainer.state.global_step, trainer.domains
            fallen = score.domain == "math" and (step, trained) in {(4, ("code",)), (2, ("math",))}
            fallen = fallen and (trained == ("code",) or trainer.args.seed > 0)
            rate, stream = (0.1 if fallen else 0.9), random.Random(0)
            scores = tuple(float(stream.random() < rate) for _ in range(PROMPTS))
            found.append(replace(score, scores=scores, mean=sum(scores) / PROMPTS))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluations, "make", planted_scores)
        yield


def stages(run):
    return [(s["kind"], s["domains"][0], s["first_step"], s["last_step"], s["taken"]) for s in run.state["stages"]]


EXPECTED = [
    ("train", "math", 0, 6, 0),
    ("train", "code", 6, 10, 0),
    ("refresh", "math", 10, 14, 0),
    ("train", "code", 14, 16, 4),
]


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    said = Killer(None)
    with planted():
        run = train(settings(tiny_model, tmp_path_factory.mktemp("whole"), "run"), "x", said)
    return run, said.said


def test_a_planted_fall_is_refreshed_and_recorded(whole):
    run, said = whole
    assert stages(run) == EXPECTED
    assert run.state["steps"] == 16
    watch = run.state["watch"]
    assert (watch["tests"], watch["refreshes"], watch["refresh_steps"], watch["still_fallen"]) == (3, 1, 4, [])
    assert any(text.startswith("math has fallen by 0.8") for text in said)
    assert any(text.startswith("math is back: it rose beyond noise") for text in said)
    moments = [(line["step"], line["when"]) for line in lines(run.path, "evals.jsonl") if line["domain"] == "math"]
    assert moments == [
        *[(6, "stage"), (8, "during"), (10, "stage"), (12, "during")],
        *[(14, "stage"), (16, "after")],
    ]
    assert all((run.path / entry["checkpoint"] / "model.safetensors").is_file() for entry in run.state["stages"])


def test_the_interrupted_stage_goes_on_with_its_schedule_and_its_optimizer(whole):
    run, _ = whole
    metrics = {line["step"]: line for line in lines(run.path, "metrics.jsonl")}
    assert sorted(metrics) == list(range(1, 17))
    math = [metrics[step]["learning_rate"] for step in range(1, 7)]
    code = [metrics[step]["learning_rate"] for step in (*range(7, 11), 15, 16)]
    assert code == math, "one schedule over all six steps, not a new one after the refresh"
    optimizer = torch.load(run.checkpoint_path(16) / "optimizer.pt", weights_only=True)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {6}
    assert [metrics[step]["stage"] for step in (6, 7, 11, 15)] == [0, 1, 2, 3]


def test_without_a_fall_the_run_is_the_one_that_nobody_watches(tiny_model, tmp_path):
    watched = train(settings(tiny_model, tmp_path, "watched", steps=3, level=1e-9), "x")
    plain = train(settings(tiny_model, tmp_path, "plain", steps=3, watch=False), "x")
    assert (
        [s[:4] for s in stages(watched)]
        == [("train", "math", 0, 3), ("train", "code", 3, 6)]
        == [s[:4] for s in stages(plain)]
    )
    assert lines(watched.path, "metrics.jsonl") == lines(plain.path, "metrics.jsonl")
    assert (watched.state["watch"]["tests"], watched.state["watch"]["refreshes"]) == (2, 0)
    last = "checkpoints/step-6/model.safetensors"
    assert (watched.path / last).read_bytes() == (plain.path / last).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 13, 15])
def test_a_killed_watched_run_takes_the_same_way(step, whole, tiny_model, tmp_path):
    run, _ = whole
    with planted():
        with pytest.raises(Killed):
            train(settings(tiny_model, tmp_path / "killed", "run"), "x", Killer(step))
        killed = resume(tmp_path / "killed" / "run")
    assert stages(killed) == EXPECTED
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert lines(killed.path, name) == lines(run.path, name), name
    last = "checkpoints/step-16/model.safetensors"
    assert (killed.path / last).read_bytes() == (run.path / last).read_bytes()
    assert killed.state["watch"] == run.state["watch"]
