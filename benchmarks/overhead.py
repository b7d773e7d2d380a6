"""Time of a GRPO step of ours (``mixed``, ``mgs``) over plain TRL's, on the pocket model and the same batch.

    python benchmarks/overhead.py [--steps 6] [--rounds 4] [--json FILE]

The learning rate is 0, so the weights never change and all three train on the very same completions; everything else of
a step is done (AdamW's update of zero included). The trainers take turns, so a busy machine slows all of them alike.
Quoted is the ratio of medians over all rounds, and the smallest and largest ratio of one round.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from counterpoint.pocket import model_path
from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import build_reward
from counterpoint.training import DomainGRPOTrainer
from counterpoint.training.domain_rewards import build_domain_rewards

TARGETS = {"mixed": 1.10, "mgs": 1.15}


class StepClock(TrainerCallback):
    """Seconds from the start of one optimizer step to the start of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Marks the end of a step."""
        self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Durations; the first step, which warms caches, is left out."""
        return [later - earlier for earlier, later in zip(self.marks, self.marks[1:], strict=False)]


def config(folder: str, steps: int) -> GRPOConfig:
    """128 completions a step, 32 of each domain."""
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=4,
        num_generations=8,
        max_completion_length=24,
        max_steps=steps,
        learning_rate=0.0,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )


def build(kind: str, folder: str, steps: int) -> tuple[GRPOTrainer, StepClock]:
    """A trainer of ``kind`` on the four pocket domains: trl, mixed or mgs."""
    data = {name: [task.generate("train", i) for i in range(256)] for name, task in TASKS.items()}
    rewards = {name: build_reward("pocket") for name in TASKS}
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    clock = StepClock()
    if kind == "trl":
        ours = DomainGRPOTrainer(model, rewards, config(folder, steps), data, strategy="mixed", processing_class=tokenizer)

        class SameOrder(GRPOTrainer):
            def _get_train_sampler(self, dataset: object = None) -> object:
                return ours._sampler

            def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
                return super()._generate_and_score_completions(ours.domain_rows.expand(inputs))

        model = AutoModelForCausalLM.from_pretrained(model_path())
        trainer: GRPOTrainer = SameOrder(
            model,
            build_domain_rewards(rewards, list(data)),
            config(folder, steps),
            ours.domain_rows.index,
            processing_class=tokenizer,
        )
    else:
        trainer = DomainGRPOTrainer(model, rewards, config(folder, steps), data, strategy=kind, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    return trainer, clock


def measure(steps: int, rounds: int) -> dict[str, list[list[float]]]:
    """Step times of every round by trainer."""
    times: dict[str, list[list[float]]] = {"trl": [], "mixed": [], "mgs": []}
    for number in range(rounds):
        for kind in sorted(times, key=lambda kind: (list(times).index(kind) + number) % len(times)):
            with TemporaryDirectory() as folder:
                trainer, clock = build(kind, folder, steps + 1)
                trainer.train()
                times[kind].append(clock.seconds)
    return times


def main() -> None:
    """Prints the table and says whether the targets hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    times = measure(options.steps, options.rounds)
    medians = {kind: statistics.median(t for row in rows for t in row) for kind, rows in times.items()}
    print(f"{'trainer':8} {'median s':>9} {'over TRL':>9} {'per round':>15} {'target':>7}")
    for kind, median in medians.items():
        ratios = [
            statistics.median(mine) / statistics.median(theirs)
            for mine, theirs in zip(times[kind], times["trl"], strict=True)
        ]
        target = f"{TARGETS[kind]:.2f}" if kind in TARGETS else "-"
        spread = f"{min(ratios):.3f} - {max(ratios):.3f}"
        print(f"{kind:8} {median:9.3f} {median / medians['trl']:9.3f} {spread:>15} {target:>7}")
    if options.json:
        options.json.write_text(json.dumps({"seconds": times, "medians": medians}, indent=2))


if __name__ == "__main__":
    main()
