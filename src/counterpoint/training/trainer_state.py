"""What a checkpoint must hold beside TRL's own state so that a resumed run continues with the same numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from counterpoint.errors import RunError
from counterpoint.runs.records import Record, Row, Whole, read_json
from counterpoint.training.regroup import Buffer

STATE_FILE = "counterpoint_state.json"
BUFFER_FILE = "counterpoint_buffer.safetensors"


class _Numbers(Record):
    micro_step: Whole
    micro_batches: Whole
    num_ranks: Whole
    surgeon: Row


@dataclass(frozen=True)
class TrainerState:
    """The micro-step counter, the surgeon's state and the completions that are still to be trained on.

    ``buffer`` is None where the next step generates anew. Each rank has completions of its own.
    """

    micro_step: int
    surgeon: dict[str, Any]
    buffer: list[Buffer] | None


def save_state(folder: Path, state: TrainerState, rank: int, num_ranks: int) -> None:
    """Writes what rank ``rank`` must add to TRL's checkpoint in ``folder``.

    Raises:
        RunError: the buffer holds something that is no tensor, so it cannot be kept without pickling.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, micro_batch in enumerate(state.buffer or ()):
        for key, value in micro_batch.items():
            if value is None:
                continue
            if not isinstance(value, torch.Tensor):
                raise RunError(
                    f"Checkpoint {folder}: the generation buffer holds {key!r} of type {type(value).__name__}, which "
                    "cannot be saved. Save at a generation boundary: make save_steps a multiple of "
                    "steps_per_generation * num_iterations / gradient_accumulation_steps."
                )
            tensors[f"{i}/{key}"] = value.detach().cpu().contiguous().clone()
    if tensors:
        save_file(tensors, _ranked(folder, BUFFER_FILE, rank))
    if rank == 0:
        numbers = {
            "micro_step": state.micro_step,
            "micro_batches": len(state.buffer or ()),
            "num_ranks": num_ranks,
            "surgeon": state.surgeon,
        }
        (folder / STATE_FILE).write_text(json.dumps(numbers))


def load_state(folder: Path, rank: int, num_ranks: int, device: torch.device) -> TrainerState:
    """What :func:`save_state` wrote.

    Raises:
        RunError: the folder was not written by a ``DomainGRPOTrainer``, or by one with another number of ranks.
    """
    state = read_numbers(folder, num_ranks)
    if not state["micro_batches"]:
        return TrainerState(state["micro_step"], state["surgeon"], None)
    buffer: list[Buffer] = [{} for _ in range(state["micro_batches"])]
    for name, tensor in load_file(_ranked(folder, BUFFER_FILE, rank)).items():
        i, key = name.split("/", 1)
        buffer[int(i)][key] = tensor.to(device)
    return TrainerState(state["micro_step"], state["surgeon"], buffer)


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
