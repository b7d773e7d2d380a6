"""Time of a GRPO step of ours (``mixed``, ``mgs``) over plain TRL's, on the pocket model and the same batch.

    python benchmarks/overhead.py [--steps 20] [--json FILE]

The learning rate is 0, so the weights never change and all three train on the very same completions; everything else of
a step is done (AdamW's update of zero included). The three trainers live in one process and take turns step by step, so
a busy machine slows all of them alike. Quoted are medians over steps of the ratio to TRL's step beside it, in wall
seconds and in processor seconds; the latter hardly depend on what else the machine does.
"""

import argparse
import json
import os
import statistics
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, build_domain_rewards
from counterpoint.pocket import model_path
from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import build_reward
from counterpoint.training import DomainGRPOConfig, DomainGRPOTrainer

KINDS = ("trl", "mixed", "mgs")
TARGETS = {"mixed": 1.10, "mgs": 1.15}


class Turns:
    """Hands the processor from one trainer to the next."""

    def __init__(self, names: Sequence[str]) -> None:
        self._waiting = list(names)
        self._changed = threading.Condition()

    def wait(self, name: str) -> None:
        """Returns when it is the turn of ``name``."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting[0] == name)

    def pass_on(self, name: str, *, leave: bool = False) -> None:
        """Ends the turn of ``name``, for good with ``leave``."""
        with self._changed:
            self._waiting.remove(name)
            if not leave:
                self._waiting.append(name)
            self._changed.notify_all()


class StepClock(TrainerCallback):
    """Times whole steps, from one step's beginning to the next one's, and passes the turn between them."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name, self.turns = name, turns
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._start: tuple[float, float] | None = None

    def on_step_begin(self, args: object, state: TrainerState, *rest: object, **kwargs: object) -> None:
        """Ends the previous step's time and starts the next one's when the turn comes back."""
        self._stop()
        self.turns.pass_on(self.name)
        self.turns.wait(self.name)
        torch.manual_seed(state.global_step)
        self._start = time.perf_counter(), time.process_time()

    def on_train_end(self, *args: object, **kwargs: object) -> None:
        """Leaves the round."""
        self._stop()
        self.turns.pass_on(self.name, leave=True)

    def _stop(self) -> None:
        if self._start is not None:
            self.wall.append(time.perf_counter() - self._start[0])
            self.cpu.append(time.process_time() - self._start[1])


def config(folder: str, steps: int, strategy: str = "mixed") -> DomainGRPOConfig:
    """128 completions a step, 32 of each domain."""
    return DomainGRPOConfig(
        strategy=strategy,
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
        activation_checkpointing=False,
        dataloader_pin_memory=False,
    )


def build(kind: str, folder: str, steps: int) -> GRPOTrainer:
    """A trainer of ``kind`` on the four pocket domains: trl, mixed or mgs."""
    data = {name: [task.generate("train", i) for i in range(256)] for name, task in TASKS.items()}
    rewards = {name: build_reward("pocket") for name in TASKS}
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    if kind == "trl":
        ours = DomainGRPOTrainer(model, rewards, config(folder, steps, "mixed"), data, processing_class=tokenizer)

        class SameOrder(GRPOTrainer):
            def _get_train_sampler(self, dataset: object = None) -> object:
                return ours._sampler

            def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
                places = [ours.domain_rows.place(example) for example in inputs]
                rows = ours.domain_rows.expand(places)
                owned = [row | {DOMAIN_COLUMN: domain} for row, (domain, _) in zip(rows, places, strict=True)]
                return super()._generate_and_score_completions(owned)

        model = AutoModelForCausalLM.from_pretrained(model_path())
        trainer: GRPOTrainer = SameOrder(
            model,
            build_domain_rewards(rewards, list(data)),
            config(folder, steps),
            ours.domain_rows.index,
            processing_class=tokenizer,
        )
    else:
        trainer = DomainGRPOTrainer(model, rewards, config(folder, steps, kind), data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(steps: int) -> dict[str, StepClock]:
    """Times of ``steps`` steps by trainer, the first (which warms caches) left out."""
    turns = Turns(KINDS)
    clocks = {kind: StepClock(kind, turns) for kind in KINDS}
    with TemporaryDirectory() as folder:
        trainers = {kind: build(kind, folder, steps + 1) for kind in KINDS}
        threads = []
        for kind, trainer in trainers.items():
            trainer.add_callback(clocks[kind])
            threads.append(threading.Thread(target=_train, args=(trainer, turns, kind)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for clock in clocks.values():
        clock.wall, clock.cpu = clock.wall[1:], clock.cpu[1:]
    return clocks


def _train(trainer: GRPOTrainer, turns: Turns, kind: str) -> None:
    turns.wait(kind)  # set-up before the first step takes turns as well
    trainer.train()


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Step by step."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each trainer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clocks = measure(options.steps)
    print(f"{'trainer':8} {'wall s':>7} {'cpu s':>7} {'wall/TRL':>9} {'cpu/TRL':>8} {'middle half':>15} {'target':>7}")
    for kind, clock in clocks.items():
        wall = ratios(clock.wall, clocks["trl"].wall)
        low, _, high = statistics.quantiles(wall, n=4)
        cpu = statistics.median(ratios(clock.cpu, clocks["trl"].cpu))
        print(
            f"{kind:8} {statistics.median(clock.wall):7.2f} {statistics.median(clock.cpu):7.2f} "
            f"{statistics.median(wall):9.3f} {cpu:8.3f} {f'{low:.3f} - {high:.3f}':>15} {TARGETS.get(kind, '-'):>7}"
        )
    if options.json:
        options.json.write_text(json.dumps({kind: {"wall": c.wall, "cpu": c.cpu} for kind, c in clocks.items()}))


if __name__ == "__main__":
    main()
