"""The edit between two checkpoints as a vector of a model's parameters, and the model it starts from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.checkpoints import Comparison, Conversion
from counterpoint.config import Config
from counterpoint.diagnosis.subject import Subject, open_subject
from counterpoint.errors import ModelError, UnsupportedError


def open_at(config: Config, before: str | Path, domains: list[str]) -> Subject:
    """The model at ``before`` as curvature needs it: plain attention, adapters merged, evaluation mode, float32.

    Fused attention has no second derivative, so attention is computed by plain matrix products. Half precision would
    drown the difference of two losses in roundings.
    """
    model = config.model.model_copy(update={"attn_implementation": "eager", "dtype": "float32"})
    subject = open_subject(config.model_copy(update={"model": model}), before, domains)
    policy = subject.model.merge_and_unload() if hasattr(subject.model, "merge_and_unload") else subject.model
    policy = policy.eval().requires_grad_(True)
    policy.config.use_cache = False
    return dataclasses.replace(subject, model=policy)


def edit_between(pair: Comparison, model: Any) -> dict[str, Tensor]:
    """``after - before`` for every parameter of ``model`` that changed, in its dtype and on its device.

    Raises:
        ModelError: the two are equal, or a tensor holds a number that is not finite.
        UnsupportedError: the checkpoints name their tensors otherwise than the model.
    """
    before, after = pair.base.path, pair.after.path
    conversion = Conversion(model, {name: pair.base.shapes[source] for name, (source, _) in pair.sources.items()})
    changes: dict[str, Tensor] = {}
    for name, old, new in pair:
        wide = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
        change = new.to(wide) - old.to(wide)
        if not bool(change.isfinite().all()):
            bad = [int((~tensor.isfinite()).sum()) for tensor in (old, new)]
            raise ModelError(
                f"{name}: of {change.numel()} weights {bad[0]} are NaN or infinite in {before} and {bad[1]} in "
                f"{after}. A loss cannot be measured there; use checkpoints from before the training diverged."
            )
        if bool(change.any()):
            changes[name] = change
    if not changes:
        raise ModelError(
            f"{before} and {after} hold the same weights, so nothing can have been damaged. Give the checkpoint after "
            "the earlier domain's stage as before and a later one as after."
        )
    own = {id(param): name for name, param in model.named_parameters()}
    found = {}
    for bundle in conversion.bundles(changes, type(model).__name__):
        unchanged = {name: pair.base.shapes[pair.sources[name][0]] for name in bundle.stored if name not in changes}
        parts = changes | {name: torch.zeros(shape) for name, shape in unchanged.items()}
        for name, value in bundle.to_model(parts.__getitem__).items():
            param = conversion.params[name]
            if id(param) not in own:
                raise UnsupportedError(
                    f"{name} changed between the checkpoints and is a buffer of {type(model).__name__}, no parameter, "
                    "so the loss has no derivative along it. Give checkpoints that differ in parameters alone."
                )
            found[own[id(param)]] = value.to(param)
    return found
