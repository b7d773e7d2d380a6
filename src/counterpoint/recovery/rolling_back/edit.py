"""The edit that may be undone, read tensor by tensor from two checkpoints: no model of it is ever in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy, NeuronAxis
from counterpoint.checkpoints import Comparison, compare, open_checkpoint
from counterpoint.errors import ModelError

Watch = Callable[[int, int], None]
"""Called with tensors done and in total."""


@dataclass(frozen=True)
class Edit:
    """``after - before``, one tensor at a time."""

    pair: Comparison
    names: tuple[str, ...]
    """The tensors of floating-point numbers, each weight once, in model order."""
    anatomy: Anatomy
    """Where they lie in the model."""

    @property
    def num_weights(self) -> int:
        """Weights of the model."""
        return sum(self.size(name) for name in self.names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self.pair.base.shapes[self.pair.sources[name][0]]

    def neurons(self, name: str) -> NeuronAxis | None:
        """Where the neurons of one tensor lie; None where it holds none."""
        return self.anatomy.neuron_axis(name)

    def size(self, name: str) -> int:
        """Weights of one tensor."""
        return torch.Size(self.shape(name)).numel()

    def before(self, name: str) -> Tensor:
        """One tensor before the edit, as it is stored."""
        return self.pair.base.tensor(self.pair.sources[name][0])

    def after(self, name: str) -> Tensor:
        """One tensor after the edit, as it is stored."""
        return self.pair.after.tensor(self.pair.sources[name][1])

    def change(self, name: str) -> Tensor:
        """The edit of one tensor: float32 or wider."""
        return wide(self.after(name)) - wide(self.before(name))


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def open_edit(before: str | Path, after: str | Path) -> Edit:
    """The edit between two checkpoints; reads headers and no weights.

    Raises:
        ModelError: a checkpoint that cannot be read, checkpoints of different architectures, or an output projection
            that is tied to the embedding only afterwards.
    """
    first, last = open_checkpoint(before), open_checkpoint(after)
    pair = compare(first, last)
    taken = [in_after for _, in_after in pair.sources.values()]
    if len(set(taken)) < len(taken):
        raise ModelError(
            f"{after} ties its output projection to its embedding and {before} does not, so the two cannot be "
            "restored apart. Use checkpoints of one run."
        )
    names = tuple(name for name in pair.names if last.dtypes[pair.sources[name][1]].is_floating_point)
    return Edit(pair, names, pair.anatomy())


def changed_weights(edit: Edit, watch: Watch = lambda done, total: None) -> Mapping[str, int]:
    """How many weights of each tensor the edit changed; tensors that it left alone are missing.

    Raises:
        ModelError: the checkpoints are equal, or hold a number that is not finite.
    """
    found = {}
    for done, name in enumerate(edit.names, 1):
        change = edit.change(name)
        bad = int((~change.isfinite()).sum())
        if bad:
            raise ModelError(
                f"{name}: {bad} of {change.numel()} weights are NaN or infinite in {edit.pair.base.path} or "
                f"{edit.pair.after.path}. Use checkpoints from before the training diverged."
            )
        count = int(change.count_nonzero())
        if count:
            found[name] = count
        watch(done, len(edit.names))
    if not found:
        raise ModelError(
            f"{edit.pair.base.path} and {edit.pair.after.path} hold the same weights, so there is nothing to undo. "
            "Give the checkpoint after the domain's own stage as --before and a later one as --after."
        )
    return found
