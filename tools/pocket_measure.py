"""Loads a pocket model, and says how well it answers: greedy and sampled mean reward on rows of one split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from counterpoint.pocket.tasks import Task

LONGEST_ANSWER = 24
"""The most tokens a completion may have; the longest gold answer has 19 characters and an end."""


@dataclass(frozen=True)
class Score:
    """Mean rewards of one domain."""

    greedy: float
    """Of the most probable answer to each prompt."""
    sampled: float
    """Of answers drawn at temperature 1."""


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model, in float32, and the tokenizer of a folder, from the disk alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@torch.inference_mode()
def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, greedy: bool, seed: int = 0
) -> list[str]:
    """One completion of each prompt, at temperature 1 unless ``greedy``. The global random state is left as it was."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device)
    # The library's own default samples among the 50 likeliest tokens only.
    how: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0}
    generate: Any = model.generate
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sequences_BT = generate(**inputs, **how, max_new_tokens=LONGEST_ANSWER)
    model.train(was_training)
    return tokenizer.batch_decode(sequences_BT[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    prompts: int = 256,
    split: str = "test",
    seed: int = 0,
) -> Score:
    """Greedy and sampled mean reward of one domain over the first ``prompts`` rows of ``split``, one sample each."""
    rows = [task.generate(split, index) for index in range(prompts)]
    means = []
    for greedy in (True, False):
        completions = complete(model, tokenizer, [row["prompt"] for row in rows], greedy=greedy, seed=seed)
        rewards = [task.score(row, text) for row, text in zip(rows, completions, strict=True)]
        means.append(sum(rewards) / prompts)
    return Score(greedy=means[0], sampled=means[1])
