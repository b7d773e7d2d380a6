"""Recover with the real rollback and the real refresh, on a run whose last checkpoint has a broken domain."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from counterpoint.checkpoints import open_checkpoint
from counterpoint.config import parse_config
from counterpoint.pocket import model_path
from counterpoint.recovery import RecoverOptions, RefreshOptions, RollbackOptions, recover
from counterpoint.runs import RunDirectory

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
]

CONFIG = {
    "model": "pocket",
    "strategy": {"name": "sequential", "order": ["math", "qa"], "steps": 1},
    "domains": {"math": {"source": "pocket"}, "qa": {"source": "pocket"}},
    "evaluation": {"prompts": 32, "samples": 2, "greedy": False, "batch_size": 64},
    "training": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-5,
    },
    "run": {"device": "cpu"},
}

SCORES = {("math", 0): 0.4, ("qa", 0): 0.4, ("math", 1): 0.75, ("qa", 1): 0.4, ("math", 2): 0.0, ("qa", 2): 0.4}


def make_run(folder):
    with RunDirectory.create(
        folder, parse_config(CONFIG | {"run": {"device": "cpu", "dir": str(folder.parent)}})
    ) as run:
        for (name, step), mean in SCORES.items():
            right = round(32 * mean)
            line = {"step": step, "when": "stage", "stage": None, "domain": name, "mean": mean, "low": 0.0, "high": 1.0}
            more = {"greedy": None, "prompts": 32, "samples": 2, "completion_length": 4.0, "truncated": 0.0}
            run.append_eval(line | more | {"seconds": 1.0, "scores": [1.0] * right + [0.0] * (32 - right)})
        stages = [
            {"domains": [name], "first_step": i, "last_step": i + 1, "checkpoint": f"checkpoints/step-{i + 1}"}
            for i, name in enumerate(("math", "qa"))
        ]
        model = AutoModelForCausalLM.from_pretrained(model_path())
        for step in (1, 2):
            model.save_pretrained(run.checkpoint_path(step))
            AutoTokenizer.from_pretrained(model_path()).save_pretrained(run.checkpoint_path(step))
            run.append_metrics({"step": step, "step_time": 0.5})
            with torch.no_grad():  # what the second stage does: a few weights change a lot
                weight = dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
                weight[::4, ::4] += 3 * torch.randn(weight[::4, ::4].shape, generator=torch.Generator().manual_seed(0))
        run.update(stages=stages, steps=2)
        run.finish("done")
    return folder


def test_both_attempts_run_and_the_better_one_is_left(tmp_path):
    folder = make_run(tmp_path / "run")
    options = RecoverOptions(
        "both",
        RollbackOptions(budgets=(0.002,), scales=(1.0,), pull_backs=(), draws=1, prompts=16, samples=2),
        RefreshOptions(steps=1, every=1),
    )
    found = recover(folder, options=options)
    rollback, refresh = found.attempts
    assert (rollback.kind, refresh.kind) == ("rollback", "refresh")
    assert rollback.changes["math"].low > 0, "the broken weights are few, and come back"
    assert set(refresh.scores) == {"math", "qa"}
    assert found.chosen == ("rollback of math",), found.sentences()
    left, kept = open_checkpoint(found.checkpoint), open_checkpoint(rollback.checkpoint)
    assert all(torch.equal(left.tensor(name), kept.tensor(name)) for name in kept.names)
    data = json.loads((folder / "recovery" / "recover.json").read_text())
    assert [attempt["kind"] for attempt in data["attempts"]] == ["rollback", "refresh"]
    assert recover(folder, options=options).attempts == found.attempts, "nothing is done twice"
