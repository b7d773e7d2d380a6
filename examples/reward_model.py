"""A small reward model, and a domain that trains under it: all on the pocket model, without a network.

    python examples/reward_model.py runs/reward-model

Takes about ten minutes on two cores. First the pocket model answers prompts of its domain ``writing``, and of several
answers the one that the task itself scores highest is called better than the one it scores lowest, as a person would.
A classifier learns from such pairs with TRL's ``RewardTrainer``. Then the pocket model is trained by ``writing.yaml``,
which this script writes: ``writing`` under the classifier alone, beside ``math`` with its right and wrong. The task's
own score of ``writing`` is only measured. Expect the classifier to like the answers better at every look, and that
score to stay where it was: that is what ``metrics`` are for.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from counterpoint.config import load_config
from counterpoint.engine import train
from counterpoint.evaluation import Sampling, generate
from counterpoint.pocket import TASKS, model_path
from counterpoint.rewards import build_reward

TASK = TASKS["writing"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{{ eos_token }}"

CONFIG = """# Written by examples/reward_model.py, which also made the classifier.
model: pocket
strategy: mgs
domains:
  writing:
    source: pocket
    reward: {name: reward_model, options: {model: classifier, normalize: true, batch_size: 64}}
    metrics: [pocket]
  math: {source: pocket}
training:
  max_steps: 40
  per_device_train_batch_size: 32
  gradient_accumulation_steps: 4
  num_generations: 8
  max_completion_length: 24
  learning_rate: 1e-4
  lr_scheduler_type: constant
evaluation: {prompts: 128, samples: 4, every: 20}
"""


def make_pairs(split: str, prompts: int, answers: int = 4) -> list[dict[str, Any]]:
    """For every prompt that got different scores its best and its worst answer, as ``RewardTrainer`` takes them."""
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    rows = [TASK.generate(split, index) for index in range(prompts)]
    asked = [row["prompt"] for row in rows for _ in range(answers)]
    texts = [one.text for one in generate(model, tokenizer, asked, Sampling(temperature=1.0, max_new_tokens=24))]
    pairs = []
    for i, row in enumerate(rows):
        own = texts[i * answers : (i + 1) * answers]
        ranked = sorted(own, key=lambda text: TASK.score(row, text))
        if TASK.score(row, ranked[0]) < TASK.score(row, ranked[-1]):
            said = [[{"role": "assistant", "content": text}] for text in (ranked[-1], ranked[0])]
            prompt = [{"role": "user", "content": row["prompt"]}]
            pairs.append({"prompt": prompt, "chosen": said[0], "rejected": said[1]})
    return pairs


def train_classifier(folder: Path, pairs: list[dict[str, Any]], epochs: float) -> None:
    """The pocket model with a head of one label, trained on pairs and saved with a chat template of its own."""
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(model_path(), num_labels=1)
    args = RewardConfig(
        output_dir=str(folder.parent / "classifier-training"),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=5e-4,
        warmup_steps=10,
        lr_scheduler_type="cosine",
        max_length=128,
        activation_checkpointing=False,
        bf16=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        report_to="none",
        logging_steps=20,
        disable_tqdm=True,
    )
    RewardTrainer(model, args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def agreement(folder: Path, pairs: list[dict[str, Any]]) -> float:
    """The share of pairs whose better answer the classifier scores higher."""
    reward = build_reward("reward_model", model=str(folder), batch_size=64)
    prompts = [pair["prompt"] for pair in pairs]
    better, worse = (
        reward(prompts=prompts, completions=[pair[key] for pair in pairs]) for key in ("chosen", "rejected")
    )
    return sum(b > w for b, w in zip(better, worse, strict=True)) / len(pairs)


def main(folder: Path, prompts: int = 1500, epochs: float = 4, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Everything, and what it showed. A classifier that is there already is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    classifier = folder / "classifier"
    if not classifier.exists():
        pairs = make_pairs("train", prompts)
        print(f"{len(pairs)} pairs")
        train_classifier(classifier, pairs, epochs)
    held_out = make_pairs("test", max(32, prompts // 6))
    agreed = agreement(classifier, held_out)
    print(f"The classifier prefers the better answer in {agreed:.1%} of {len(held_out)} held-out pairs.")
    (folder / "writing.yaml").write_text(CONFIG)
    config = load_config(folder / "writing.yaml", [f"run.dir={folder}", *overrides])
    run = train(config, "writing-mgs")
    found: dict[str, Any] = {"held_out": len(held_out), "agreement": agreed, "evaluations": []}
    print("step  writing: logit [95 %]  greedy   task's own score   math")
    lines = run.lines("evals.jsonl")
    for line, other in zip(lines[::2], lines[1::2], strict=True):
        logit = f"{line['mean']:+.3f} [{line['low']:+.3f}, {line['high']:+.3f}]  {line['greedy']:+.3f}"
        print(f"{line['step']:4d}  {logit}   {line['metrics']['pocket']:.3f}   {other['mean']:.3f}")
        found["evaluations"].append((line["step"], line["mean"], line["metrics"]["pocket"], other["mean"]))
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/reward-model"))
