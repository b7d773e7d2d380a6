"""What a checkpoint must hold beside TRL's own state so that a resumed run continues with the same numbers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig

from counterpoint.domains.sampler import MixedRows
from counterpoint.errors import RunError
from counterpoint.runs.records import Number, Record, Row, Whole, read_json
from counterpoint.training.batches import Buffer
from counterpoint.training.config import plain_curriculum, plain_strategy

STATE_FILE = "counterpoint_state.json"
BUFFER_FILE = "counterpoint_buffer.safetensors"
_LIST = "[]"
"""End of a tensor's name that was a list of numbers, such as the images of each completion."""


class _Running(Record):
    count: Whole
    mean: Number
    squares: Number


class _Numbers(Record):
    micro_step: Whole
    micro_batches: Whole
    num_ranks: Whole
    settings: Row
    surgeon: Row
    rewards: dict[str, _Running] = Field(default_factory=dict)
    balance: Row = Field(default_factory=dict)
    redraws: dict[str, Whole] = Field(default_factory=dict)
    mix: Row = Field(default_factory=dict)


@dataclass(frozen=True)
class TrainerState:
    """The micro-step counter, the surgeon's state, the completions that are still to be trained on, the statistics of
    normalised rewards, what the balance and the mix remember, and how many prompts were drawn in place of others.

    ``buffer`` is None where the next step generates anew. Each rank has completions of its own.
    """

    micro_step: int
    surgeon: dict[str, Any]
    buffer: list[Buffer] | None
    rewards: dict[str, Any] = field(default_factory=dict)
    balance: dict[str, Any] = field(default_factory=dict)
    redraws: dict[str, int] = field(default_factory=dict)
    mix: dict[str, Any] = field(default_factory=dict)


def kept_settings(
    args: GRPOConfig, own: Mapping[str, Any], sizes: Mapping[str, int], mixed: Mapping[str, MixedRows]
) -> dict[str, Any]:
    """Everything that settles which prompts a step holds and how they are combined, as plain data.

    Args:
        own: what ``own_settings`` gives.
        sizes: rows of each domain, in their order.
        mixed: the rows of those domains whose sources have shares.
    """
    batch = (
        *("seed", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps"),
        *("steps_per_generation", "num_iterations", "shuffle_dataset"),
    )
    shares, given = own["shares"] or dict.fromkeys(sizes, 1.0), own["per_domain"]
    return {
        "strategy": plain_strategy(own["strategy"]),
        "rows of the domains": [[name, size] for name, size in sizes.items()],
        "shares": {name: float(shares[name]) for name in sizes},
        "shares of the sources": {name: rows.shares for name, rows in mixed.items()},
        "share_rule": own["share_rule"],
        "balance": own["balance"],
        "dynamic_sampling": own["dynamic_sampling"],
        "per_domain": {name: kept for name in sizes if (kept := (given or {}).get(name))},
        "schedule": own["schedule"],
        "curriculum": plain_curriculum(own["curriculum"]),
    } | {name: getattr(args, name) for name in batch}


def save_state(folder: Path, state: TrainerState, settings: dict[str, Any], rank: int, num_ranks: int) -> None:
    """Writes what rank ``rank`` must add to TRL's checkpoint in ``folder``.

    Raises:
        RunError: the buffer holds something that is no tensor, so it cannot be kept without pickling.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    for i, micro_batch in enumerate(state.buffer or ()):
        for key, value in micro_batch.items():
            if isinstance(value, list) and all(type(item) is int for item in value):
                tensors[f"{i}/{key}{_LIST}"] = torch.tensor(value, dtype=torch.int64)
            elif isinstance(value, torch.Tensor):
                tensors[f"{i}/{key}"] = value.detach().cpu().contiguous().clone()
            elif value is not None:
                raise RunError(
                    f"Checkpoint {folder}: the generation buffer holds {key!r} of type {type(value).__name__}, which "
                    "cannot be saved. Save at a generation boundary: make save_steps a multiple of "
                    "steps_per_generation * num_iterations / gradient_accumulation_steps."
                )
    if tensors:
        save_file(tensors, _ranked(folder, BUFFER_FILE, rank))
    if rank == 0:
        numbers = {
            "micro_step": state.micro_step,
            "micro_batches": len(state.buffer or ()),
            "num_ranks": num_ranks,
            "settings": settings,
            "surgeon": state.surgeon,
            "rewards": state.rewards,
            "balance": state.balance,
            "redraws": state.redraws,
            "mix": state.mix,
        }
        (folder / STATE_FILE).write_text(json.dumps(numbers))


def load_state(
    folder: Path, settings: Mapping[str, Any], rank: int, num_ranks: int, device: torch.device
) -> TrainerState:
    """What :func:`save_state` wrote.

    Raises:
        RunError: the folder was not written by a ``DomainGRPOTrainer``, by one with another number of ranks, or with
            other ``settings``.
    """
    state = {"rewards": {}, "balance": {}, "redraws": {}, "mix": {}} | read_numbers(folder, num_ranks)
    default = {"balance": "none", "dynamic_sampling": 0, "per_domain": {}}
    _check_settings(folder, default | state["settings"], settings)
    shared = {name: state[name] for name in ("rewards", "balance", "redraws", "mix")}
    if not state["micro_batches"]:
        return TrainerState(state["micro_step"], state["surgeon"], None, **shared)
    buffer: list[Buffer] = [{} for _ in range(state["micro_batches"])]
    for name, tensor in load_file(_ranked(folder, BUFFER_FILE, rank)).items():
        i, key = name.split("/", 1)
        listed = key.endswith(_LIST)
        buffer[int(i)][key.removesuffix(_LIST)] = tensor.tolist() if listed else tensor.to(device)
    return TrainerState(state["micro_step"], state["surgeon"], buffer, **shared)


def find_checkpoint(requested: str | Path | bool | None, output_dir: str) -> str | None:
    """The checkpoint that was asked for, the newest of ``output_dir`` where it is True; None for a new training.

    Raises:
        RunError: there is none.
    """
    if isinstance(requested, str | Path):
        return str(requested)
    if not requested:
        return None
    found = get_last_checkpoint(output_dir)
    if found is None:
        raise RunError(f"{output_dir} holds no checkpoint to resume from. Train without resuming.")
    return found


class RenamedWeights:
    """For a ``Trainer``: weights that transformers saved under names that the model does not have.

    It does so for mixtures of experts and some vision-language models, and then loads by name: nothing but a warning
    tells that those weights stay what they were.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._loads_renamed(resume_from_checkpoint, self.model if model is None else model):  # type: ignore[attr-defined]
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        if not self._loads_renamed(self.state.best_model_checkpoint, self.model):  # type: ignore[attr-defined]
            super()._load_best_model()  # type: ignore[misc]

    def _loads_renamed(self: Any, folder: Any, model: Any) -> bool:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # these keep a copy under the names of their own
            return False
        return load_renamed(self.accelerator.unwrap_model(model), Path(folder))


def load_renamed(model: Any, folder: Path) -> bool:
    """Loads the weights of ``folder`` into ``model`` where they have other names; False where all names are its own."""
    saved: set[str] = set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as tensors:
            saved |= set(tensors.keys())
    if saved <= set(model.state_dict()):
        return False
    model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())
    return True


def _check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            raise RunError(
                f"Checkpoint {folder}: {name} was {before.get(name)!r} and is {value!r} now, so the run would not go "
                "on with the same numbers. Resume with what it was, or start a new run from this checkpoint's model."
            )


def read_numbers(folder: Path, num_ranks: int) -> dict[str, Any]:
    """The part of the state that all ranks share, once it is known to fit ``num_ranks`` of them.

    Raises:
        RunError: as :func:`load_state`.
    """
    if not (folder / STATE_FILE).exists():
        raise RunError(
            f"Checkpoint {folder}: no {STATE_FILE}, so it was not written by counterpoint. Resume from one that was, "
            "or start a new run with it as the model."
        )
    state = read_json(folder / STATE_FILE, _Numbers, "Resume from another checkpoint.")
    if state["num_ranks"] != num_ranks:
        raise RunError(
            f"Checkpoint {folder}: written by {_processes(state['num_ranks'])}, and this is {_processes(num_ranks)}. "
            "Which prompts a step holds depends on that number, so the run would not go on with the same numbers. "
            f"Resume with {_processes(state['num_ranks'])}, or start a new run with the checkpoint as its model."
        )
    return state


def _processes(number: int) -> str:
    return "one process" if number == 1 else f"{number} processes"


def _ranked(folder: Path, name: str, rank: int) -> Path:
    return folder / (name if rank == 0 else f"rank-{rank}-{name}")
