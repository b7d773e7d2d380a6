"""A checkpoint with part of an edit undone: in a model for a while, or on the disk. Both hold the same bits."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.checkpoints import Conversion, write_checkpoint
from counterpoint.recovery.rolling_back.edit import Edit, wide
from counterpoint.recovery.rolling_back.masks import Mask


@dataclass(frozen=True)
class Patch:
    """``theta_after - scale * mask * (theta_after - theta_before)``, tensor by tensor; no mask is ``theta_after``.

    A scale of 1 gives the very numbers from before, and every weight outside the mask keeps its bits.
    """

    edit: Edit
    mask: Mask | None = None
    scale: float = 1.0

    def __call__(self, name: str) -> Tensor:
        """One tensor, in the type that it has after the edit."""
        after = self.edit.after(name)
        chosen = None if self.mask is None else self.mask.of(name)
        if chosen is None:
            return after
        restored = torch.lerp(wide(after), wide(self.edit.before(name)).to(wide(after).dtype), self.scale)
        return torch.where(chosen, restored.to(after.dtype), after)


class Site:
    """A model whose weights are set to any patch of an edit; what it was before does not matter."""

    def __init__(self, model: Any, edit: Edit, changed: Mapping[str, int]) -> None:
        """Raises ``UnsupportedError`` where the edit changed a tensor that the model has no parameter for."""
        self.edit = edit
        self.shapes = {name: edit.shape(name) for name in edit.names}
        self.conversion = Conversion(model, self.shapes)
        self.conversion.bundles(changed, type(model).__name__)
        known = [name for name in edit.names if name in self.conversion.by_stored]
        self.bundles = self.conversion.bundles(known, type(model).__name__)

    def hold(self, tensor_of: Callable[[str], Tensor]) -> None:
        """Copies ``tensor_of(name)`` of every stored tensor into the model's parameters."""
        with torch.no_grad():
            for bundle in self.bundles:
                for name, value in bundle.to_model(tensor_of).items():
                    self.conversion.params[name].copy_(value)

    def params_of(self, names: Iterable[str]) -> list[str]:
        """The model's parameters that hold these stored tensors."""
        return [param for bundle in self.conversion.bundles(names, "the model") for param in bundle.params]

    def to_disk(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``values`` of some of the model's parameters as they lie in the stored tensors."""
        found: dict[str, Tensor] = {}
        for bundle in self.bundles:
            if all(name in values for name in bundle.params):
                found |= bundle.to_disk({name: values[name] for name in bundle.params}, self.shapes)
        return found


def write_patch(patch: Patch, out: Path, on_progress: Callable[[str, int, int], None]) -> Path:
    """Writes the patched checkpoint: the files of the one after the edit, with the patch's tensors."""
    after = patch.edit.pair.after

    def tensor_of(stored: str) -> Tensor:
        name = patch.edit.pair.name_of(stored)
        return after.tensor(stored) if name is None else patch(name)

    return write_checkpoint(out, after, tensor_of, on_progress)
