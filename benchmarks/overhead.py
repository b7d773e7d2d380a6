"""Time of a GRPO step of ours (``mixed``, ``mgs``) over plain TRL's, and of each balance over none.

    python benchmarks/overhead.py [--steps 20] [--only mixed tokens] [--json FILE]

On the pocket model and the same batch. The learning rate is 0, so the weights never change and all train on the very
same completions; everything else of a step is done (AdamW's update of zero included). The trainers live in one process
and take turns step by step, so a busy machine slows all of them alike. Quoted are medians over steps of the ratio to
the step beside it (of TRL, or of ``mixed`` for a balance), in wall seconds and in processor seconds; the latter hardly
depend on what else the machine does. ``dynamic`` generates anew for prompts that teach nothing: what that took of a
step stands beside it.
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
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")

import torch
from accelerate.state import GradientState
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from counterpoint.balance import BALANCES
from counterpoint.domains.domain_rewards import DOMAIN_COLUMN, build_domain_rewards
from counterpoint.pocket import model_path
from counterpoint.pocket.tasks import TASKS
from counterpoint.rewards import build_reward
from counterpoint.training import DomainGRPOConfig, DomainGRPOTrainer

KINDS: dict[str, dict[str, Any]] = {
    "trl": {},
    "mixed": {},
    "mgs": {"strategy": "mgs"},
    **{name: {"balance": name} for name in BALANCES if name != "none"},
    "dynamic": {"dynamic_sampling": 2},
}
"""Trainer -> its settings beside ``strategy="mixed"``."""

BESIDE = {kind: "trl" if kind in ("trl", "mixed", "mgs") else "mixed" for kind in KINDS}
"""What a trainer is compared with."""

TARGETS = {"mixed": 1.10, "mgs": 1.15} | dict.fromkeys([name for name in BALANCES if name != "none"], 1.02)


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
        # all trainers of a process share this, and the one before left it at the end of its own step
        GradientState()._set_sync_gradients(False)
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


def config(folder: str, steps: int, kind: str) -> DomainGRPOConfig:
    """128 completions a step, 32 of each domain."""
    return DomainGRPOConfig(
        **({"strategy": "mixed"} | KINDS[kind]),
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
    """A trainer of ``kind`` on the four pocket domains."""
    data = {name: [task.generate("train", i) for i in range(256)] for name, task in TASKS.items()}
    rewards = {name: build_reward("pocket") for name in TASKS}
    model = AutoModelForCausalLM.from_pretrained(model_path())
    tokenizer = AutoTokenizer.from_pretrained(model_path(), padding_side="left")
    if kind == "trl":
        ours = DomainGRPOTrainer(model, rewards, config(folder, steps, kind), data, processing_class=tokenizer)

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
            config(folder, steps, kind),
            ours.domain_rows.index,
            processing_class=tokenizer,
        )
    else:
        trainer = DomainGRPOTrainer(model, rewards, config(folder, steps, kind), data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(steps: int, kinds: Sequence[str]) -> tuple[dict[str, StepClock], list[float]]:
    """Times of ``steps`` steps by trainer, the first (which warms caches) left out; and ``extra_seconds`` of
    ``dynamic``, where it is among them."""
    turns = Turns(kinds)
    clocks = {kind: StepClock(kind, turns) for kind in kinds}
    with TemporaryDirectory() as folder:
        trainers = {kind: build(kind, folder, steps + 1) for kind in kinds}
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
    log = trainers["dynamic"].state.log_history[1:] if "dynamic" in trainers else []
    return clocks, [line["extra_seconds"] for line in log if "extra_seconds" in line]


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
    parser.add_argument("--only", nargs="+", choices=list(KINDS), help="leave the other trainers out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = options.only or list(KINDS)
    kinds = [kind for kind in KINDS if kind in asked or kind in {BESIDE[one] for one in asked}]
    clocks, extra = measure(options.steps, kinds)
    titles = f"{'wall s':>7} {'cpu s':>7} {'wall':>6} {'cpu':>6} {'middle half':>15} {'target':>7}"
    print(f"{'trainer':8} {'beside':>7} {titles}")
    for kind, clock in clocks.items():
        beside = clocks[BESIDE[kind]]
        wall, cpu = ratios(clock.wall, beside.wall), ratios(clock.cpu, beside.cpu)
        low, _, high = statistics.quantiles(cpu, n=4)
        print(
            f"{kind:8} {BESIDE[kind]:>7} {statistics.median(clock.wall):7.2f} {statistics.median(clock.cpu):7.2f} "
            f"{statistics.median(wall):6.3f} {statistics.median(cpu):6.3f} {f'{low:.3f} - {high:.3f}':>15} "
            f"{TARGETS.get(kind, '-'):>7}"
        )
    if extra:
        share = statistics.median(ratios(extra, clocks["dynamic"].wall))
        print(f"dynamic: extra generation is {share:.0%} of its step's wall time, median over steps")
    if options.json:
        options.json.write_text(json.dumps({kind: {"wall": c.wall, "cpu": c.cpu} for kind, c in clocks.items()}))


if __name__ == "__main__":
    main()
