"""How much training changed each neuron: one number per MLP channel from its gate row, up row and down column.

LPT (arXiv 2606.02398) aggregates the size of the edit over the three; its norm is not known, so it is an option here:
``l2`` (default), ``l1``, or ``max``.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from counterpoint.anatomy import NeuronAxis

NORMS = ("l2", "l1", "max")

Layers = dict[int, Tensor]
"""For each layer one value per neuron."""


def change_scores(parts: Iterable[tuple[NeuronAxis, Tensor]], norm: str = "l2") -> Layers:
    """Scores by layer from what each weight holds of them: sums of squares, of sizes, or largest sizes; float64."""
    layers: Layers = {}
    for axis, part in parts:
        folded = part.view(axis.times, -1)
        own = folded.amax(0) if norm == "max" else folded.sum(0)
        before = layers.get(axis.layer)
        if before is None:
            layers[axis.layer] = own
        else:
            layers[axis.layer] = torch.maximum(before, own) if norm == "max" else before + own
    return {layer: scores.sqrt() if norm == "l2" else scores for layer, scores in sorted(layers.items())}


def top_neurons(scores: Layers, share: float) -> Layers:
    """Which neurons are among the most changed ``share`` of all layers' together, as bool; never an unchanged one."""
    flat = torch.cat(list(scores.values())) if scores else torch.zeros(0)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(round(share * len(flat))).indices] = True
    chosen &= flat > 0
    return dict(zip(scores, chosen.split([len(own) for own in scores.values()]), strict=True))


def numbers(chosen: Layers) -> dict[int, Sequence[int]]:
    """The chosen neurons of every layer by number."""
    return {layer: own.nonzero().flatten().tolist() for layer, own in chosen.items()}
