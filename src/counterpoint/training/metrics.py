"""Metrics per domain of one generation batch, and of one step's surgery. See docs/metrics.md for every name.

Legend: D domains, G groups, B rows of the generation batch over all ranks, F reward functions.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from trl.trainer.utils import nanstd as trl_nanstd

from counterpoint.surgery import Record, conflict_rate, contributions, cosines, removed_share
from counterpoint.training.batches import nanstd, total_rewards


def batch_metrics(
    domains: Sequence[str],
    domain_B: torch.Tensor,
    rewards_BF: torch.Tensor,
    weights_F: torch.Tensor,
    reward_names: Sequence[str],
    lengths_B: torch.Tensor,
    truncated_B: torch.Tensor,
    num_generations: int | Mapping[str, int],
) -> dict[str, tuple[float, int]]:
    """Reward, spread, parts, zero-advantage share, length and truncation of every domain present, with its rows.

    Rows of no domain have the id -1. ``num_generations`` may be that of each domain.
    """
    total_B = total_rewards(rewards_BF, weights_F)
    found: dict[str, tuple[float, int]] = {}
    for domain_id in domain_B[domain_B >= 0].unique().tolist():
        metrics: dict[str, float] = {}
        name, own_B = domains[domain_id], domain_B == domain_id
        total = total_B[own_B]
        metrics[f"reward/{name}"] = total.nanmean().item()
        metrics[f"reward_std/{name}"] = nanstd(total).item()
        group = num_generations if isinstance(num_generations, int) else num_generations[name]
        metrics[f"zero_advantage/{name}"] = zero_advantage_share(total, group)
        metrics[f"unscored/{name}"] = total.isnan().float().mean().item()
        metrics[f"completion_length/{name}"] = lengths_B[own_B].float().mean().item()
        metrics[f"truncated/{name}"] = truncated_B[own_B].float().mean().item()
        metrics |= _parts(name, reward_names, rewards_BF[own_B])
        found |= {key: (value, int(own_B.sum())) for key, value in metrics.items()}
    return found


def teaching_rows(total_B: torch.Tensor, num_generations: int) -> torch.Tensor:
    """True ``[B]`` where completions of the row's prompt differ in reward."""
    equal_P, unknown_P = _equal(total_B, num_generations)
    return ~(equal_P | unknown_P).repeat_interleave(num_generations)


def equal_rows(total_B: torch.Tensor, num_generations: int) -> torch.Tensor:
    """True ``[B]`` where the scored completions of the row's prompt have one reward, as TRL counts them."""
    equal_P, _ = _equal(total_B, num_generations)
    return equal_P.repeat_interleave(num_generations)


def zero_advantage_share(total_B: torch.Tensor, num_generations: int) -> float:
    """Share of prompts whose completions all have the same reward, so that they teach nothing."""
    if num_generations == 1:
        return 1.0  # TRL's own answer for one completion of a prompt
    equal_P, _ = _equal(total_B, num_generations)
    return equal_P.float().mean().item()


def _equal(total_B: torch.Tensor, num_generations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each prompt whether its scored completions have one reward, and whether fewer than two are scored."""
    spread_P = trl_nanstd(total_B.view(-1, num_generations), dim=1)
    return torch.isclose(spread_P, torch.zeros_like(spread_P)), spread_P.isnan()


def _parts(domain: str, reward_names: Sequence[str], rewards_BF: torch.Tensor) -> dict[str, float]:
    """Mean of each reward function of the domain; left out where a domain has only one, which is the reward itself."""
    applied = [f for f in range(rewards_BF.shape[1]) if not rewards_BF[:, f].isnan().all()]
    if len(applied) < 2:
        return {}
    return {
        f"reward/{domain}/{reward_names[f].removeprefix(domain + '/')}": rewards_BF[:, f].nanmean().item()
        for f in applied
    }


def surgery_metrics(record: Record) -> dict[str, float]:
    """Global cosine of every pair of domains, conflict rate over modules, the share that surgery removed, and the
    domains' parts in the gradients and in the update.

    Every value is an aggregate: the number of keys depends on the domains alone, never on the size of the model. What
    cannot be computed, such as the cosine of a domain without a gradient, is left out.
    """
    metrics = {"nonfinite": float(not record.finite), "removed": removed_share(record.gram_GDD, record.weights_GD)}
    if len(record.domains) < 2 or not record.finite:
        return metrics
    _, gram_GDD = record.regroup("module")
    global_cosine_DD = cosines(gram_GDD.sum(dim=0))
    metrics["conflict_rate"] = conflict_rate(gram_GDD)
    for i, first in enumerate(record.domains):
        for j in range(i + 1, len(record.domains)):
            pair = f"{first}|{record.domains[j]}"
            metrics[f"cosine/{pair}"] = global_cosine_DD[i, j].item()
            metrics[f"conflict_rate/{pair}"] = conflict_rate(gram_GDD[:, [i, j]][:, :, [i, j]])
    squares_D = gram_GDD.sum(dim=0).diagonal().clamp(min=0)
    part_D = contributions(record.gram_GDD, record.weights_GD)
    for i, name in enumerate(record.domains):
        metrics[f"grad_norm/{name}"] = squares_D[i].sqrt().item()
        metrics[f"share_gradient/{name}"] = (squares_D[i] / squares_D.sum()).item()
        metrics[f"share_update/{name}"] = part_D[i].item()
    return {key: value for key, value in metrics.items() if not math.isnan(value)}


def unscaled(record: Record, scaler: Any) -> Record:
    """``record`` in the units of the loss, where fp16 training has scaled the loss up."""
    if scaler is None or not scaler.is_enabled():
        return record
    square = scaler.get_scale() ** 2
    return replace(record, gram_GDD=record.gram_GDD / square, gram_UDD=record.gram_UDD / square)


PER_MICRO_BATCH: Mapping[str, str] = {
    "entropy": "entropy",
    "kl": "kl",
    "clip_ratio/region_mean": "clip_ratio",
    "cispo_clip_ratio": "clip_ratio",
}
"""TRL's metrics with one value per micro-batch, and the name of their per-domain copy."""


def copy_per_domain(metrics: defaultdict[str, list[float]], domain: str, counts: Mapping[str, int]) -> None:
    """Gives ``domain`` its copy of what TRL has added to each of ``PER_MICRO_BATCH`` beyond its first ``counts``."""
    for key, name in PER_MICRO_BATCH.items():
        for value in metrics.get(key, ())[counts.get(key, 0) :]:
            metrics[f"{name}/{domain}"].append(value)


def no_signal(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """A sentence on domains that taught nothing in any step: all completions of each prompt had the same reward."""
    shares: dict[str, list[float]] = {}
    rewards: dict[str, list[float]] = {}
    for line in metrics:
        for key, value in line.items():
            kind, _, domain = key.partition("/")
            if value is not None and kind in ("zero_advantage", "reward"):
                (shares if kind == "zero_advantage" else rewards).setdefault(domain, []).append(value)
    silent = [domain for domain, values in shares.items() if min(values) > 1 - 1e-6]
    if not silent:
        return None
    what = (
        "Nothing was learned from rewards"
        if len(silent) == len(shares)
        else f"Nothing was learned in {', '.join(silent)}"
    )
    means = ", ".join(f"{statistics.fmean(rewards[name]):.3f} in {name}" for name in silent if rewards.get(name))
    return (
        f"{what}: in every step all completions of each prompt had the same reward (mean {means or 'unknown'}), so "
        "every advantage was 0. Read samples.jsonl. Where answers are wrong, use easier prompts, a longer "
        "max_completion_length, or a reward that gives parts of the score; where right answers score 0, correct the "
        "reward (counterpoint score); where all are right, use harder prompts. More num_generations or a higher "
        "temperature make answers differ."
    )
