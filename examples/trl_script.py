"""A plain TRL script, with counterpoint added: the pocket model on two domains with modular gradient surgery.

    python examples/trl_script.py

Takes about a minute on two cores and needs no network. Expect the sampled reward of math to rise from about 0.6 by more
than 0.05 within 20 steps; the script checks that.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from datasets import Dataset

from counterpoint.pocket import model_path
from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import build_reward
from counterpoint.training import DomainGRPOConfig, DomainGRPOTrainer

data = {name: Dataset.from_list([TASKS[name].generate("train", i) for i in range(512)]) for name in ("math", "code")}

trainer = DomainGRPOTrainer(
    model=str(model_path()),
    reward_funcs={"math": build_reward("pocket"), "code": build_reward("pocket")},
    args=DomainGRPOConfig(
        output_dir="runs/trl-script",
        per_device_train_batch_size=32,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=24,
        max_steps=20,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        activation_checkpointing=False,
        bf16=False,
        strategy="mgs",
    ),
    train_dataset=data,
)
trainer.train()

history = [line for line in trainer.state.log_history if "reward/math" in line]


def mean_reward(lines: list[dict[str, float]]) -> float:
    """Mean reward of math over some steps."""
    return sum(line["reward/math"] for line in lines) / len(lines)


first, last = mean_reward(history[:4]), mean_reward(history[-4:])
print(f"math: reward {first:.3f} -> {last:.3f}, conflict rate of the last step {history[-1]['conflict_rate']:.2f}")
if last < first + 0.05:
    raise SystemExit("math did not learn; this is not what was expected.")
