"""Trains the pocket base model from nothing, on the CPU, the same bit for bit each time on one machine.

    python tools/build_pocket.py my-base     # about six minutes of processor time, on two cores

First supervised learning on gold answers, to competence. Then some steps on answers of which many are noise (gold
answers to other prompts), so that the model still knows the domains but samples them badly, as base models do:
reinforcement learning then has something to bring out. The bits depend on the kind of processor, the release of torch
and the number of threads, which is therefore a setting of its own and not taken from the machine.
"""

import argparse
import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

# Before torch starts its threads: waiting threads that spin slow a busy machine down fifteen-fold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from counterpoint.pocket import TASKS, Task
from counterpoint.pocket.tokenizer import new_tokenizer
from pocket_measure import Score, measure

IGNORED = -100
"""Label of tokens without a loss: the prompt and the padding."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a pocket model."""

    hidden: int = 192
    layers: int = 4
    heads: int = 6
    inner: int = 512
    longest: int = 128
    """The most positions it can read."""


@dataclass(frozen=True)
class Stage:
    """One stretch of supervised steps. The learning rate warms up and then falls by a cosine to a tenth."""

    name: str
    steps: int
    learning_rate: float
    noise: float = 0.0
    """Share of answers that belong to another prompt."""
    warm_up: int = 40


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights of a base model."""

    competence: Stage = Stage("competence", steps=1400, learning_rate=2e-3)
    noisy: Stage = Stage("noise", steps=200, learning_rate=1.5e-4, noise=0.4, warm_up=10)
    rows: int = 16
    """Rows of each domain in a step."""
    seed: int = 0
    threads: int = 2
    shape: Shape = field(default_factory=Shape)

    @property
    def stages(self) -> tuple[Stage, Stage]:
        """The stages in their order."""
        return self.competence, self.noisy


@dataclass(frozen=True)
class Base:
    """A trained base model and what it reached."""

    plan: Plan
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    losses: dict[str, list[float]]
    """Stage -> loss (nats a token) of each step."""
    scores: dict[str, dict[str, Score]]
    """Stage -> domain -> score on held-out prompts after that stage."""


Report = Callable[[str, int, int, float], None]
"""Called after each step with the stage's name, steps done, steps in all, and the loss."""


def build(plan: Plan, report: Report, *, prompts: int = 512) -> Base:
    """Trains a base model from nothing and measures it on ``prompts`` held-out rows of each domain after each stage."""
    with _repeatable(plan.threads):
        tokenizer = new_tokenizer(plan.shape.longest)
        model = new_model(plan.shape, tokenizer, plan.seed)
        losses, scores = {}, {}
        for stage in plan.stages:
            losses[stage.name] = train(model, tokenizer, plan, stage, report)
            if stage is plan.noisy:
                round_to_half(model)
            scores[stage.name] = {
                name: measure(model, tokenizer, task, prompts=prompts) for name, task in TASKS.items()
            }
    return Base(plan, model, tokenizer, losses, scores)


def record(base: Base) -> dict[str, Any]:
    """How a base was made and what it reached, ready for JSON."""
    return {
        "parameters": base.model.num_parameters(),
        "torch": str(torch.__version__),
        "plan": asdict(base.plan),
        "last_loss": {stage: losses[-1] for stage, losses in base.losses.items()},
        "scores": {stage: {name: asdict(score) for name, score in of.items()} for stage, of in base.scores.items()},
    }


def save(base: Base, folder: Path) -> None:
    """Writes a base as a Hugging Face model folder with its ``record`` beside it as ``build.json``."""
    save_base(base.model, base.tokenizer, folder)
    (folder / "build.json").write_text(json.dumps(record(base), indent=2) + "\n", encoding="utf-8")


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, plan: Plan, stage: Stage, report: Report
) -> list[float]:
    """Runs one stage in place; gives the loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    losses = []
    model.train()
    for step in range(stage.steps):
        for settings in optimizer.param_groups:
            settings["lr"] = stage.learning_rate * _rate(step, stage)
        rng = random.Random(f"{plan.seed}/{stage.name}/{step}")
        loss = 0.0
        for task in TASKS.values():
            loss += _backward(model, _batch(tokenizer, task, plan.rows, stage.noise, rng)) / len(TASKS)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        report(stage.name, step + 1, stage.steps, losses[-1])
    model.eval()
    return losses


def _rate(step: int, stage: Stage) -> float:
    """The learning rate of a step as a share of the stage's highest."""
    warm = min(1.0, (step + 1) / stage.warm_up)
    return warm * (0.55 + 0.45 * math.cos(math.pi * step / stage.steps))


def _backward(model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Adds the gradient of one domain's part of the loss; gives the domain's loss in nats a token."""
    tokens_BT, labels_BT = batch
    logits_BTV = model(tokens_BT, use_cache=False).logits
    loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten(), ignore_index=IGNORED)
    (loss / len(TASKS)).backward()
    return loss.item()


def _batch(
    tokenizer: PreTrainedTokenizerBase, task: Task, rows: int, noise: float, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels [B, T] of one domain, padded on the right so that no attention mask is needed.

    Domains do not share a batch because their lengths differ: the padding would cost as much as the text.
    """
    examples = [_example(tokenizer, task, noise, rng) for _ in range(rows)]
    longest = max(len(prompt) + len(answer) for prompt, answer in examples)
    tokens_BT = torch.full((rows, longest), tokenizer.pad_token_id)
    labels_BT = torch.full((rows, longest), IGNORED)
    for place, (prompt, answer) in enumerate(examples):
        tokens_BT[place, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels_BT[place, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return tokens_BT, labels_BT


def _example(
    tokenizer: PreTrainedTokenizerBase, task: Task, noise: float, rng: random.Random
) -> tuple[list[int], list[int]]:
    """Token ids of a train prompt and of its answer with its end."""
    row = task.generate("train", rng.randrange(10**9))
    answer = task.noise(row, rng) if rng.random() < noise else row["answer"]
    return tokenizer.encode(row["prompt"]), [*tokenizer.encode(answer), tokenizer.eos_token_id]


@contextmanager
def _repeatable(threads: int) -> Iterator[None]:
    """Deterministic algorithms and a fixed number of threads inside; the earlier settings afterwards."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """A Llama with random float32 weights from ``seed`` and tied embeddings."""
    config = LlamaConfig(
        architectures=[LlamaForCausalLM.__name__],  # TRL loads a model's path by it
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.longest,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        max_new_tokens=24,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def round_to_half(model: LlamaForCausalLM) -> None:
    """Rounds every weight to its nearest float16, in place, so that saving it as float16 loses nothing."""
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(param.half())


def save_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a model that ``round_to_half`` has rounded, its settings and its tokenizer as a Hugging Face folder.

    The weights lie in the file as float16 to halve its size. ``config.json`` says float32, so they are loaded, exactly,
    as that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    # A tokenizer that has padded a batch would write that batch's padding into its file.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    weights = {name: param.detach().half().contiguous() for name, param in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def main() -> None:
    """Reads the command line, trains, saves and prints what the base reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write; it must be new or empty")
    parser.add_argument("--steps", type=int, default=Plan.competence.steps, help="steps on gold answers")
    parser.add_argument("--noisy-steps", type=int, default=Plan.noisy.steps, help="steps on answers with noise")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of every batch")
    parser.add_argument("--prompts", type=int, default=512, help="held-out prompts of each domain to measure it on")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if any(options.output.iterdir()):
        parser.error(f"the folder {options.output} is not empty, and nothing is overwritten. Choose another.")
    plan = Plan(
        competence=replace(Plan.competence, steps=options.steps),
        noisy=replace(Plan.noisy, steps=options.noisy_steps),
        seed=options.seed,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}")) as progress:
        tasks = {stage.name: progress.add_task(stage.name, total=stage.steps, loss=math.nan) for stage in plan.stages}

        def show(stage: str, step: int, total: int, loss: float) -> None:
            progress.update(tasks[stage], completed=step, loss=loss)

        base = build(plan, show, prompts=options.prompts)
    save(base, options.output)
    for stage, scores in base.scores.items():
        said = "  ".join(f"{name} {score.greedy:.2f}/{score.sampled:.2f}" for name, score in scores.items())
        print(f"after {stage} (greedy/sampled): {said}")
    print(f"Written to {options.output}")


if __name__ == "__main__":
    main()
