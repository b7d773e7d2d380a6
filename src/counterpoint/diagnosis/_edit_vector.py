"""The edit between two checkpoints, tensor by tensor and as a vector of parameters, and the model it starts from."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.checkpoints import Comparison, Conversion
from counterpoint.config import Config
from counterpoint.diagnosis._contributions import wide
from counterpoint.diagnosis.subject import Subject, open_subject
from counterpoint.errors import ModelError, UnsupportedError
from counterpoint.progress import Progress, silent


@dataclass(frozen=True)
class Edit:
    """``after - before``, one tensor at a time."""

    pair: Comparison

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of floats, each weight once, in order."""
        return self.pair.floats

    @property
    def num_weights(self) -> int:
        """Weights of the model."""
        return sum(torch.Size(self.shape(name)).numel() for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self.pair.base.shapes[self.pair.sources[name][0]]

    def before(self, name: str) -> Tensor:
        """One tensor before the edit, as it is stored."""
        return self.pair.base.tensor(self.pair.sources[name][0])

    def after(self, name: str) -> Tensor:
        """One tensor after the edit, as it is stored."""
        return self.pair.after.tensor(self.pair.sources[name][1])

    def change(self, name: str) -> Tensor:
        """The edit of one tensor: float32, or float64 where it is stored so."""
        change = wide(self.after(name))
        return change.sub_(self.before(name).to(change.dtype))


def changed_weights(edit: Edit, on_progress: Progress = silent) -> dict[str, int]:
    """How many weights of each tensor the edit changed; tensors that it left alone are missing.

    Raises:
        ModelError: the checkpoints are equal, or hold a number that is not finite.
    """
    found = {}
    for done, name in enumerate(edit.names, 1):
        change = edit.change(name)
        if not bool(change.isfinite().all()):
            bad = [int((~tensor.isfinite()).sum()) for tensor in (edit.before(name), edit.after(name))]
            raise ModelError(
                f"{name}: of {change.numel()} weights {bad[0]} are NaN or infinite in {edit.pair.base.path} and "
                f"{bad[1]} in {edit.pair.after.path}. Use checkpoints from before the training diverged."
            )
        if count := int(change.count_nonzero()):
            found[name] = count
        on_progress("read the edit", done, len(edit.names))
    if not found:
        raise ModelError(
            f"{edit.pair.base.path} and {edit.pair.after.path} hold the same weights: there is no edit. Give the "
            "checkpoint after the domain's own stage as before, and a later one as after."
        )
    return found


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
    edit = Edit(pair)
    conversion = Conversion(model, {name: edit.shape(name) for name in edit.names})
    own = {id(param): name for name, param in model.named_parameters()}
    found = {}
    for bundle in conversion.bundles(changed_weights(edit), type(model).__name__):
        for name, value in bundle.to_model(edit.change).items():
            param = conversion.params[name]
            if id(param) not in own:
                raise UnsupportedError(
                    f"{name} changed between the checkpoints and is a buffer of {type(model).__name__}, no parameter, "
                    "so the loss has no derivative along it. Give checkpoints that differ in parameters alone."
                )
            found[own[id(param)]] = value.to(param)
    return found
