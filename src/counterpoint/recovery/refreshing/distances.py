"""How far a checkpoint is from the reference, neuron by neuron, kept for every look of a run.

What is kept does not depend on the route, which is found when the run is over: training never waits for it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from counterpoint.anatomy import NeuronAxis
from counterpoint.checkpoints import compare, open_checkpoint
from counterpoint.diagnosis.edit_analysis.neurons import change_scores
from counterpoint.disk import write_bytes
from counterpoint.errors import RunError

_WHOLE = "whole"


class Distances:
    """Squares of ``theta_t - theta_A`` summed in every neuron and in all, in one file with an entry for every step."""

    def __init__(self, path: Path, reference: str) -> None:
        self.path, self.reference = path, reference

    def add(self, step: int, checkpoint: str | Path) -> None:
        """Measures ``checkpoint``, tensor by tensor; a step that was measured before is measured again."""
        found = self._read() | {f"{step}/{key}": value for key, value in squares(self.reference, checkpoint).items()}
        write_bytes(self.path, save(found))

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        return sorted({int(key.split("/")[0]) for key in self._read()})

    def norms(self, neurons: Mapping[int, Tensor]) -> dict[int, tuple[float, float, float]]:
        """By step: the norm on the chosen neurons (bool for each layer), everywhere else, and whole."""
        found = self._read()
        return {step: _norms({k: found[f"{step}/{k}"] for k in _keys(found, step)}, neurons) for step in self.steps()}

    def _read(self) -> dict[str, Tensor]:
        try:
            return load_file(self.path) if self.path.is_file() else {}
        except (SafetensorError, OSError) as error:
            raise RunError(
                f"{self.path}: cannot be read ({error}). Remove it; distances are then measured from here on."
            ) from error


def squares(reference: str | Path, checkpoint: str | Path) -> dict[str, Tensor]:
    """Sums of squares of ``checkpoint - reference``, float64: each layer's neurons by its number, and ``whole``."""
    parts: list[tuple[NeuronAxis, Tensor]] = []
    pair = compare(open_checkpoint(reference), open_checkpoint(checkpoint))
    anatomy = pair.anatomy()
    whole = torch.zeros((), dtype=torch.float64)
    for name, before, now in pair:
        change = (now.double() - before.double()).square()
        whole += change.sum()
        axis = anatomy.neuron_axis(name)
        if axis is not None and change.ndim == 2:
            parts.append((axis, change.sum(1 - axis.dim)))
    # added up as sizes are, because these are squares already
    return {_WHOLE: whole} | {str(layer): own for layer, own in change_scores(parts, "l1").items()}


def _keys(found: Mapping[str, Tensor], step: int) -> Iterator[str]:
    return (key.split("/")[1] for key in found if key.split("/")[0] == str(step))


def _norms(own: Mapping[str, Tensor], neurons: Mapping[int, Tensor]) -> tuple[float, float, float]:
    on = sum(float(own[str(layer)][chosen].sum()) for layer, chosen in neurons.items())
    whole = float(own[_WHOLE])
    return on**0.5, max(0.0, whole - on) ** 0.5, whole**0.5
