"""LoRA: adapters are trained and grouped by the module they adapt, alone and in whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from counterpoint.config import parse_config
from counterpoint.engine import evaluate_model, train
from counterpoint.training import DomainGRPOTrainer
from trainer_helpers import DATA, REWARDS, grpo_args

peft = pytest.importorskip("peft", reason="the extra 'peft' is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

TARGETS = ["q_proj", "v_proj", "up_proj"]


def test_adapters_are_grouped_by_module_and_nothing_else_moves(tiny_model, tiny_tokenizer, tmp_path):
    trainer = DomainGRPOTrainer(
        str(tiny_model),
        REWARDS,
        grpo_args(tmp_path, beta=0.05, strategy="mgs"),
        DATA,
        processing_class=tiny_tokenizer,
        peft_config=peft.LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert trainer.surgeon.groups == ("layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp")
    assert isinstance(trainer, GRPOTrainer)
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert any(p.abs().sum() > 0 for n, p in after.items() if "lora_B" in n)


def test_a_sequential_run_carries_the_adapter_from_stage_to_stage(tiny_model, tmp_path):
    config = {
        "model": {"path": str(tiny_model), "lora": {"r": 2, "target_modules": TARGETS}},
        "strategy": "sequential",
        "domains": {"math": {"source": "pocket"}, "code": {"source": "pocket"}},
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "max_completion_length": 4,
            "gradient_checkpointing": False,
            "learning_rate": 1e-2,
        },
        "evaluation": {"prompts": 2, "samples": 1, "greedy": False},
        "run": {"dir": str(tmp_path), "name": "lora", "device": "cpu", "samples": 1},
    }
    run = train(parse_config(config), "x")
    state = json.loads((run.path / "run.json").read_text())
    folders = [run.path / stage["checkpoint"] for stage in state["stages"]]
    assert [folder.name for folder in folders] == ["step-1", "step-2"]
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in folders)
    assert first.keys() == second.keys()
    assert all("lora" in name for name in first)
    assert not (folders[0] / "model.safetensors").exists()

    scores = evaluate_model(parse_config(config | {"model": str(folders[1])}))
    recorded = [e["scores"] for e in run.lines("evals.jsonl") if e["when"] == "after"]
    assert [list(score.scores) for score in scores] == recorded
