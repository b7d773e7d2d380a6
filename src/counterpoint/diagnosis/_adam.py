"""The metric in which Adam steps: from the optimizer state of a checkpoint."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.errors import ModelError

OPTIMIZER_FILE = "optimizer.pt"

_NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)
"""Parameters that the Trainer of transformers keeps in a second group, without weight decay."""


def read_optimizer(checkpoint: Path) -> dict[str, Any]:
    """The optimizer state in a checkpoint folder, or in a file; unpickled without running any code in it.

    Raises:
        ModelError: none there, or it holds more than tensors and numbers.
    """
    path = checkpoint / OPTIMIZER_FILE if checkpoint.is_dir() else checkpoint
    if not path.is_file():
        raise ModelError(
            f"{checkpoint}: there is no {OPTIMIZER_FILE} here. Give a checkpoint that was saved with its optimizer "
            "state (save_only_model: false), or leave the optimizer state out."
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path}: the optimizer state cannot be read safely ({reason[:120]}). Only tensors and numbers are "
            "accepted; save it again with torch.save(optimizer.state_dict()), or leave the optimizer state out."
        ) from None
    if not isinstance(found, dict) or not {"state", "param_groups"} <= set(found):
        raise ModelError(
            f"{path} is no optimizer state: it lacks `state` and `param_groups`. Give the {OPTIMIZER_FILE} of a "
            "checkpoint, or leave the optimizer state out."
        )
    return found


def state_beside(checkpoint: str | Path, model: Any) -> tuple[dict[str, Any] | None, str]:
    """The optimizer state in the folder of a model that was loaded from there; None and a reason where it is no use.

    A folder without one gives None and no reason.
    """
    if not (Path(checkpoint) / OPTIMIZER_FILE).is_file():
        return None, ""
    try:
        state = read_optimizer(Path(checkpoint))
        adam_metric(state, trained_shapes(model))
    except ModelError as error:
        return None, str(error)
    return state, ""


def trained_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of ``model`` that have gradients, in model order."""
    return {name: tuple(param.shape) for name, param in model.named_parameters() if param.requires_grad}


def adam_metric(state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The diagonal ``1 / (sqrt(v) + eps)`` of Adam's metric by parameter, v with Adam's correction of its start.

    Adam's step for domain b is ``- lr * P g_b`` without momentum, and changes domain a's loss by ``- lr * g_a' P g_b``
    to first order: a negative product in this metric is what hurts under Adam (Kingma and Ba, 2015, algorithm 1).
    Weights that never had a gradient (v = 0) get 0 here, as 1 / eps would let them drown all others.

    ``state`` numbers the parameters; names follow from the order of ``shapes``, all in one group or as the Trainer of
    transformers has them (with weight decay first), where every shape fits. Refuses anything else by name.
    """
    groups = state["param_groups"]
    numbers = [number for group in groups for number in group["params"]]
    settings = {number: group for group in groups for number in group["params"]}
    names = _order(shapes, len(groups))
    if len(numbers) != len(names):
        raise ModelError(
            f"The optimizer state is of {len(numbers)} parameters and the model trains {len(names)}. Give the "
            "optimizer state of this very model, or leave it out."
        )
    return {
        name: _diagonal(state["state"].get(number, {}), settings[number], name, shapes[name])
        for number, name in zip(numbers, names, strict=True)
    }


def _order(shapes: Mapping[str, tuple[int, ...]], num_groups: int) -> list[str]:
    if num_groups < 2:
        return list(shapes)
    decayed = [name for name in shapes if not _NOT_DECAYED.search(name)]
    return decayed + [name for name in shapes if _NOT_DECAYED.search(name)]


def _diagonal(moments: Mapping[str, Any], group: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    square = moments.get("exp_avg_sq")
    if not isinstance(square, Tensor):
        found = ", ".join(map(str, moments)) or "nothing"
        raise ModelError(
            f"The optimizer state holds no `exp_avg_sq` for {name!r} (found {found}): it is not Adam's, or has not "
            "stepped. Only Adam and AdamW are read; leave the optimizer state out."
        )
    if tuple(square.shape) != tuple(shape):
        raise ModelError(
            f"The optimizer state does not fit the model: {name!r} has shape {tuple(shape)}, the state at its place "
            f"{tuple(square.shape)}. Give the optimizer state of this very model, or leave it out."
        )
    correction = 1 - float(group["betas"][1]) ** float(moments["step"])
    metric = 1 / ((square.double() / correction).sqrt() + float(group["eps"]))
    return torch.where(square > 0, metric, 0).to(torch.float32)
