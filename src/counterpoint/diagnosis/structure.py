"""Where neurons and heads lie in the weights, and which module a weight belongs to.

A neuron is one intermediate channel of an MLP: a row of its gate and up projections and a column of its down
projection. A head is one block of columns of the attention's output projection.
"""

import re
from dataclasses import dataclass

from counterpoint.errors import GroupingError
from counterpoint.surgery.groupings import group_parameters, plain_name

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)$")
_NEURONS = {
    # part of the name -> (dimension of the weight along which neurons lie, how many times over)
    "mlp.gate_proj.weight": (0, 1),
    "mlp.up_proj.weight": (0, 1),
    "mlp.down_proj.weight": (1, 1),
    "mlp.gate_up_proj.weight": (0, 2),  # Phi-3: gate rows, then up rows
    "mlp.fc1.weight": (0, 1),  # Phi
    "mlp.fc2.weight": (1, 1),
    "mlp.c_fc.weight": (1, 1),  # GPT-2 keeps its weights transposed
    "mlp.c_proj.weight": (0, 1),
    "mlp.dense_h_to_4h.weight": (0, 1),  # GPT-NeoX
    "mlp.dense_4h_to_h.weight": (1, 1),
}
OUTPUT_PROJECTIONS = ("self_attn.o_proj.weight", "self_attn.dense.weight", "attention.dense.weight")
"""Ends of the names of attention output projections whose columns belong to heads."""


@dataclass(frozen=True)
class NeuronAxis:
    """How one weight is cut into the neurons of its layer: dimension ``dim``, which holds them ``times`` over."""

    layer: int
    dim: int
    times: int


def layer_of(name: str) -> int | None:
    """The number of the layer that a parameter belongs to; None outside the layers."""
    match = _LAYER.search(plain_name(name))
    return int(match[1]) if match else None


def neuron_axis(name: str) -> NeuronAxis | None:
    """Where the neurons of an MLP weight lie; None for every other parameter."""
    match = _LAYER.search(plain_name(name))
    if not match or match[2] not in _NEURONS:
        return None
    dim, times = _NEURONS[match[2]]
    return NeuronAxis(int(match[1]), dim, times)


def is_output_projection(name: str) -> bool:
    """Whether the columns of this weight are the outputs of attention heads."""
    match = _LAYER.search(plain_name(name))
    return match is not None and match[2] in OUTPUT_PROJECTIONS


def module_of(name: str, shape: tuple[int, ...]) -> str:
    """The module of a parameter as in training (``layers.0.mlp``); the tensor's own name where no rule knows it."""
    try:
        groups = group_parameters({name: shape}, "module")[name]
    except GroupingError:
        return plain_name(name)
    return groups[0] if len(groups) == 1 else groups[0].rsplit(".", 1)[0]
