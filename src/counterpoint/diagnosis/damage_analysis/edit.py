"""The edit between two checkpoints as a direction in a model's parameters, and the model it starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.config import Config
from counterpoint.diagnosis.domains_of_config import Subject, open_subject
from counterpoint.errors import ModelError, UnsupportedError
from counterpoint.surgery.groupings import plain_name


def check_pair(base: str | Path, after: str | Path) -> None:
    """Refuses, before any weight is read, checkpoints that are not two states of one architecture."""
    compare(open_checkpoint(base), open_checkpoint(after))


def open_at(config: Config, base: str | Path, domains: list[str]) -> Subject:
    """The model at ``base`` as curvature needs it: plain attention, adapters merged, evaluation mode, float32.

    Fused attention has no second derivative, so attention is computed by plain matrix products. Half precision would
    drown the difference of two losses in roundings.
    """
    model = config.model.model_copy(update={"attn_implementation": "eager", "dtype": "float32"})
    subject = open_subject(config.model_copy(update={"model": model}), base, domains)
    policy = subject.model.merge_and_unload() if hasattr(subject.model, "merge_and_unload") else subject.model
    policy = policy.eval().requires_grad_(True)
    policy.config.use_cache = False
    return dataclasses.replace(subject, model=policy)


def edit_between(base: str | Path, after: str | Path, model: Any) -> dict[str, torch.Tensor]:
    """``after - base`` for every parameter of ``model`` that changed, in its dtype and on its device.

    Both checkpoints are read tensor by tensor.

    Raises:
        ModelError: the two are equal, or a tensor holds a number that is not finite.
        UnsupportedError: the checkpoints name their tensors otherwise than the model.
    """
    params = {plain_name(name): (name, param) for name, param in model.named_parameters()}
    found = {}
    for name, before, now in compare(open_checkpoint(base), open_checkpoint(after)):
        change = now.double() - before.double()
        if not bool(change.isfinite().all()):
            bad = [int((~tensor.isfinite()).sum()) for tensor in (before, now)]
            raise ModelError(
                f"{name}: of {change.numel()} weights {bad[0]} are NaN or infinite in {base} and {bad[1]} in {after}. "
                "A loss cannot be measured there; use checkpoints from before the training diverged."
            )
        if not bool(change.any()):
            continue
        if name not in params:
            raise UnsupportedError(
                f"{name} changed between the checkpoints, but {type(model).__name__} has no parameter of that name "
                f"(it has {next(iter(params))}, ...). Save the checkpoints with the model class that loads them."
            )
        own, param = params[name]
        found[own] = change.to(param)
    if not found:
        raise ModelError(
            f"{base} and {after} hold the same weights, so nothing can have been damaged. Give the checkpoint after "
            "the earlier domain's stage as --base and a later one as --after."
        )
    return found
