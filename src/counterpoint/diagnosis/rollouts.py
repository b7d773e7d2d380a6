"""A domain's completions at one model, with rewards and advantages: what routes, gradients and damage are measured on.

Legend: B completions, T tokens of a batch (prompt and completion, padded on the right).
"""

import itertools
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from counterpoint.disk import write_text
from counterpoint.domains import Domain
from counterpoint.errors import CounterpointError
from counterpoint.evaluation import Sampling, generate, score_rows
from counterpoint.evaluation.sampling import render_prompt
from counterpoint.results import of_plain
from counterpoint.runs.records import Number, Record, Whole, read_lines

EPSILON = 1e-4
"""Beside a standard deviation, as in GRPO."""

ROUNDING = 1e-8
"""Rewards that differ by less are equal."""


@dataclass(frozen=True)
class Rollout:
    """One completion: tokens of prompt and completion (end token included), its reward and its advantage.

    ``group`` numbers the prompt; advantages are normalised among the completions of one prompt.
    """

    group: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reward: float
    advantage: float
    truncated: bool = False


@dataclass(frozen=True)
class Rollouts:
    """The completions of one domain, whole groups next to each other."""

    domain: str
    items: tuple[Rollout, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def groups(self) -> list[list[Rollout]]:
        """The completions of every prompt, in order."""
        found: dict[int, list[Rollout]] = {}
        for item in self.items:
            found.setdefault(item.group, []).append(item)
        return list(found.values())

    @property
    def num_groups(self) -> int:
        """Number of prompts."""
        return len(self.groups)

    @property
    def informative(self) -> "Rollouts":
        """Those with an advantage: prompts whose completions all have one reward teach nothing."""
        return replace(self, items=tuple(item for item in self.items if item.advantage != 0))

    def first(self, samples: int) -> "Rollouts":
        """The first ``samples`` completions of every prompt; their advantages stay as they are."""
        return replace(self, items=tuple(item for items in self.groups for item in items[:samples]))

    def split(self) -> "tuple[Rollouts, Rollouts]":
        """Two halves that share no prompt: prompts of even and of odd rank."""
        even, odd = self.groups[::2], self.groups[1::2]
        return replace(self, items=tuple(itertools.chain(*even))), replace(self, items=tuple(itertools.chain(*odd)))


@dataclass(frozen=True)
class TokenBatch:
    """Completions as tensors: ``ids_BT`` int64, ``attention_BT`` and ``completion_BT`` bool, ``advantage_B`` float32.

    ``completion_BT`` marks the tokens of completions, whose log-probability is predicted one position earlier.
    """

    ids_BT: Tensor
    attention_BT: Tensor
    completion_BT: Tensor
    advantage_B: Tensor

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The batch on another device."""
        return TokenBatch(*(tensor.to(device) for tensor in vars(self).values()))


def sample_rollouts(
    model: Any,
    tokenizer: Any,
    domain: Domain,
    *,
    prompts: int,
    samples: int,
    sampling: Sampling,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Rollouts:
    """Draws ``samples`` completions for each of the first ``prompts`` training rows and scores them.

    Completions without a reward are left out.

    Raises:
        CounterpointError: fewer rows than prompts.
        RewardError: from the domain's rewards.
    """
    rows = domain.train
    if len(rows) < prompts:
        raise CounterpointError(
            f"The domain {domain.name!r} has {len(rows)} rows and {prompts} prompts are asked for. Lower the number of "
            "prompts, or give the domain more rows."
        )
    chosen = [row for row in rows[:prompts] for _ in range(samples)]
    completions = generate(model, tokenizer, [row["prompt"] for row in chosen], sampling, on_batch)
    rewards = score_rows(domain, chosen, completions).totals
    items = []
    for i, (row, completion, reward) in enumerate(zip(chosen, completions, rewards, strict=True)):
        if reward is None:  # not scored; training leaves it out of its group too
            continue
        prompt = row["prompt"]
        text = render_prompt(tokenizer, prompt, sampling.chat_template_kwargs)
        ids = tokenizer(text, add_special_tokens=isinstance(prompt, str))["input_ids"]
        items.append(Rollout(i // samples, tuple(ids), completion.ids, reward, 0.0, completion.truncated))
    return Rollouts(domain.name, with_advantages(items))


def with_advantages(items: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """Advantages ``(reward - mean) / (std + 1e-4)`` among the completions of each prompt, as GRPO has them.

    Exactly 0 where a prompt's rewards are equal up to rounding: it teaches nothing.
    """
    groups: dict[int, list[float]] = {}
    for item in items:
        groups.setdefault(item.group, []).append(item.reward)
    return tuple(replace(item, advantage=_advantage(item.reward, groups[item.group])) for item in items)


def _advantage(reward: float, rewards: Sequence[float]) -> float:
    if max(rewards) - min(rewards) < ROUNDING:
        return 0.0
    return (reward - statistics.fmean(rewards)) / (statistics.stdev(rewards) + EPSILON)


def collate(items: Sequence[Rollout], pad_id: int) -> TokenBatch:
    """One batch, padded on the right."""
    longest = max(len(item.prompt_ids) + len(item.completion_ids) for item in items)
    ids_BT = torch.full((len(items), longest), pad_id)
    attention_BT = torch.zeros(len(items), longest, dtype=torch.bool)
    completion_BT = torch.zeros(len(items), longest, dtype=torch.bool)
    for i, item in enumerate(items):
        start, end = len(item.prompt_ids), len(item.prompt_ids) + len(item.completion_ids)
        ids_BT[i, :end] = torch.tensor([*item.prompt_ids, *item.completion_ids])
        attention_BT[i, :end] = True
        completion_BT[i, start:end] = True
    return TokenBatch(ids_BT, attention_BT, completion_BT, torch.tensor([item.advantage for item in items]))


class _Line(Record):
    domain: str
    group: Whole
    prompt_ids: list[Whole]
    completion_ids: Annotated[list[Whole], Field(min_length=1)]
    reward: Number
    advantage: Number
    truncated: bool = False


def save_rollouts(path: Path, *rollouts: Rollouts) -> None:
    """Writes one JSON object per completion of these domains, so that another analysis can use the same ones."""
    lines = [json.dumps({"domain": one.domain} | asdict(item)) for one in rollouts for item in one.items]
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_rollouts(path: Path) -> dict[str, Rollouts]:
    """The completions that ``save_rollouts`` wrote, by domain.

    Raises:
        RunError: a line holds no completion.
    """
    found: dict[str, list[Rollout]] = {}
    remedy = "Give a file that an analysis saved: completions, one JSON object a line."
    for line in read_lines(path, _Line, remedy):
        found.setdefault(line["domain"], []).append(of_plain(Rollout, line))
    return {domain: Rollouts(domain, tuple(items)) for domain, items in found.items()}
