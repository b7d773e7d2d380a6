"""What shares the GPUs with the model that is trained: a reference model, vLLM, reward models.

>>> companions_of(load_config("my.yaml"), gpus=8).vllm_share  # 0.3: TRL's default where vLLM is on
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from counterpoint.config import Config
from counterpoint.errors import ConfigError
from counterpoint.models import described_model

VLLM_SHARE = 0.3
"""TRL's default of ``vllm_gpu_memory_utilization``."""

PROCESSES = 8
"""GPUs, and so processes, of a machine, where training has as many."""

Place = Literal["every GPU", "one of the GPUs", "other GPUs", "the host"]


@dataclass(frozen=True)
class RewardModel:
    """A classifier that scores completions. Every training process has one of its own, shared by its domains."""

    label: str
    parameters: int
    num_bytes: int
    """Bytes of its weights."""
    place: Place
    copies: int
    """How many lie on one device: one on every GPU, one for each process that shares a named device."""


@dataclass(frozen=True)
class Companions:
    """What else a training needs beside the weights, gradients and moments of the policy."""

    kl: bool = False
    """Whether there is a KL term (``beta`` above 0): one more copy of the weights, none with LoRA."""
    vllm: Literal["none", "colocate", "server"] = "none"
    """``colocate``: in the training processes. ``server``: on other GPUs, which are not counted."""
    vllm_share: float = 0.0
    """Share of each GPU's memory that vLLM takes for its weights and cache (``vllm_gpu_memory_utilization``)."""
    vllm_sleeps: bool = False
    """Whether it gives that back while weights are updated (``vllm_enable_sleep_mode``)."""
    reward_models: tuple[RewardModel, ...] = ()

    @property
    def reward_bytes(self) -> int:
        """Bytes of reward models on the GPU that holds most of them."""
        here = ("every GPU", "one of the GPUs")
        return sum(model.copies * model.num_bytes for model in self.reward_models if model.place in here)


def companions_of(config: Config, gpus: int) -> Companions:
    """What a configuration trains beside its policy, on ``gpus`` GPUs in all.

    Raises:
        ConfigError: a setting that must be a number is none.
        ModelError: there is no configuration of a sequence classifier where a reward model should be.
    """
    training = config.training
    mode = training.get("vllm_mode", "colocate") if training.get("use_vllm") else None
    colocated = mode == "colocate"
    return Companions(
        kl=_number(training, "beta", 0.0) > 0,
        vllm="colocate" if colocated else "server" if mode == "server" else "none",
        vllm_share=_number(training, "vllm_gpu_memory_utilization", VLLM_SHARE) if colocated else 0.0,
        vllm_sleeps=colocated and bool(training.get("vllm_enable_sleep_mode")),
        reward_models=tuple(_reward_model(*use, gpus) for use in dict.fromkeys(_uses(config))),
    )


def _number(training: dict[str, Any], key: str, default: float) -> float:
    value = training.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"training.{key}: expected a number, found {value!r}.")
    return float(value)


def _uses(config: Config) -> Iterator[tuple[str, tuple[str, ...], str, str | None, bool]]:
    """Model, devices, type, revision and trust of every reward model that scores or measures a domain."""
    for domain in config.domains.values():
        for reward in (*domain.reward, *domain.metrics):
            options = reward.options
            if reward.name == "reward_model" and isinstance(model := options.get("model"), str):
                device = options.get("device") or ()
                devices = (device,) if isinstance(device, str) else tuple(map(str, device))
                trusted = options.get("trust_remote_code") is True
                yield model, devices, str(options.get("dtype", "auto")), options.get("revision"), trusted


def _reward_model(
    model: str, devices: tuple[str, ...], dtype: str, revision: str | None, trusted: bool, gpus: int
) -> RewardModel:
    built = described_model(
        model,
        lambda: AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trusted),
        "a folder with a config.json or a hub id",
        trusted,
        AutoModelForSequenceClassification,
        "sequence classifier",
    )
    parameters = sum(param.numel() for param in built.parameters())
    loaded = getattr(torch, dtype, None) if dtype != "auto" else built.config.dtype
    item_size = (loaded or torch.float32).itemsize
    return RewardModel(model, parameters, parameters * item_size, *_place(devices, min(gpus, PROCESSES)))


def _place(devices: tuple[str, ...], processes: int) -> tuple[Place, int]:
    """Where the processes of a machine, which take ``devices`` in turn, put their copies; how many on one of them."""
    try:
        found = [torch.device(device) for device in devices]
    except RuntimeError as error:
        given = ", ".join(devices)
        raise ConfigError(f"reward_model: {given!r} is no device of torch. Give cpu, cuda, or cuda:1.") from error
    copies = math.ceil(processes / max(1, len(found)))
    if any(device.type != "cpu" and device.index is not None and device.index < processes for device in found):
        return "one of the GPUs", copies
    if any(device.type != "cpu" and device.index is None for device in found) or not found:
        return "every GPU", 1
    return ("the host" if all(device.type == "cpu" for device in found) else "other GPUs"), copies
