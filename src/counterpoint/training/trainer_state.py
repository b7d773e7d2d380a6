"""What a checkpoint must hold beside TRL's own state so that a resumed run continues with the same numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from counterpoint.errors import RunError
from counterpoint.training.regroup import Buffer

STATE_FILE = "counterpoint_state.json"
BUFFER_FILE = "counterpoint_buffer.safetensors"


def save_state(
    folder: Path, micro_step: int, surgeon: dict[str, Any], buffer: Sequence[Buffer] | None, rank: int
) -> None:
    """Writes the micro-step counter, the surgeon's state and the completions that are still to be trained on.

    ``buffer`` is None where the next step generates anew.

    Raises:
        RunError: the buffer holds something that is no tensor, so it cannot be kept without pickling.
    """
    tensors: dict[str, torch.Tensor] = {}
    for i, micro_batch in enumerate(buffer or ()):
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
        state = {"micro_step": micro_step, "micro_batches": len(buffer or ()), "surgeon": surgeon}
        (folder / STATE_FILE).write_text(json.dumps(state))


def load_state(folder: Path, rank: int, device: torch.device) -> tuple[int, dict[str, Any], list[Buffer] | None]:
    """The micro-step counter, surgeon state and buffer that :func:`save_state` wrote.

    Raises:
        RunError: the folder was not written by a ``DomainGRPOTrainer``.
    """
    if not (folder / STATE_FILE).exists():
        raise RunError(
            f"Checkpoint {folder}: no {STATE_FILE}, so it was not written by counterpoint. Resume from one that was, "
            "or start a new run with it as the model."
        )
    state = json.loads((folder / STATE_FILE).read_text())
    if not state["micro_batches"]:
        return state["micro_step"], state["surgeon"], None
    buffer: list[Buffer] = [{} for _ in range(state["micro_batches"])]
    for name, tensor in load_file(_ranked(folder, BUFFER_FILE, rank)).items():
        i, key = name.split("/", 1)
        buffer[int(i)][key] = tensor.to(device)
    return state["micro_step"], state["surgeon"], buffer


def _ranked(folder: Path, name: str, rank: int) -> Path:
    return folder / (name if rank == 0 else f"rank-{rank}-{name}")
