"""A model's anatomy, read from its module tree: layers, blocks, experts, neurons, heads, and the norms between them.

The layers of a language model are the elements of the list of blocks that lies next to its token embedding. Inside a
layer each direct child that holds parameters is a block:

======================  ==============================================================================================
``attention``           and ``cross_attention``, ``linear_attention``, ``mamba``, ``conv``, ``recurrent``: the mixers
``mlp``                 the dense feed-forward block
``router``              of a mixture of experts, beside ``experts.0``, ``experts.1``, ... and ``shared_expert``
any other name          a child that no rule knows is a block under its own name
======================  ==============================================================================================

A norm belongs to the block that it feeds or closes. Where one norm feeds both blocks of a layer (Phi, Falcon-H1) it
counts as the attention's, in a mixture as the router's, the only part that sees every token. Outside the layers there
are ``embedding``, ``norm`` and ``lm_head``; towers of other modalities, projectors and everything else are blocks under
their own names. Experts that are stored in one tensor are equal slices of it along dimension 0.

Classes tell blocks apart where a model is there. From names alone (a bare mapping, a checkpoint without configuration)
the same rules go by names and shapes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from ._layer import Layer, NeuronAxis, Place
from ._tree import EMBEDDING, OTHER_MODALITY, Node, Shapes, Tree, parameters_of, path_of, plain_name

__all__ = ["Anatomy", "NeuronAxis", "Place", "Shapes", "parameters_of", "path_of", "plain_name"]

_FINAL_NORM = re.compile(
    r"(?:final_|out_|output_)?(?:layer_?norm|norm)(?:_f)?|ln_f|ln_out|norm_f|out_norm", re.IGNORECASE
)
_HEAD = re.compile(r"lm_head|embed_out|head|output|cls|lm_loss|pred_layer|generator_\w+")
_PROJECTOR = re.compile(r"merger|projector|connector")


@dataclass
class Anatomy:
    """Where every parameter of a model lies. Names are looked up without wrappers' and adapters' prefixes."""

    places: dict[str, Place] = field(default_factory=dict)
    neurons: dict[str, NeuronAxis] = field(default_factory=dict)
    """MLP weights whose rows or columns are neurons (a neuron is one intermediate channel)."""
    outputs: dict[str, int] = field(default_factory=dict)
    """Output projections of attention, whose inputs are the heads one after the other, with their layers."""
    layers: tuple[int, ...] = ()
    """Layers of the language model that have a feed-forward block."""

    @classmethod
    def of(cls, source: nn.Module | Shapes) -> "Anatomy":
        """The anatomy of a module, or of names with shapes."""
        return _read(Tree.of_module(source) if isinstance(source, nn.Module) else Tree.of_names(source))

    def place(self, name: str) -> Place:
        """Where a parameter lies; one that was not there when the anatomy was read is a block under its own name."""
        path = path_of(name)
        return self.places.get(path) or Place(path, path)

    def module_of(self, name: str) -> str:
        """The block of a parameter as one name: ``layers.0.experts`` for a tensor of all experts."""
        return self.place(name).block

    def by_module(self, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """The parameters of every module, in the order given."""
        found: dict[str, tuple[str, ...]] = {}
        for name in names:
            module = self.module_of(name)
            found[module] = (*found.get(module, ()), name)
        return found

    def layer_of(self, name: str) -> int | None:
        """The number of the language model's layer that a parameter belongs to; None outside."""
        match = re.fullmatch(r"layers\.(\d+)", self.place(name).layer)
        return int(match[1]) if match else None

    def neuron_axis(self, name: str) -> NeuronAxis | None:
        """Where the neurons of an MLP weight lie; None for every other parameter."""
        return self.neurons.get(path_of(name))

    def output_layer(self, name: str) -> int | None:
        """The layer of an output projection of attention; None for every other parameter."""
        return self.outputs.get(path_of(name))


def _read(tree: Tree) -> Anatomy:
    found, places = Anatomy(), dict[str, Place]()
    stacks = _stacks(tree)
    main = _main_stacks(tree, stacks)
    container = main[0].path[:-1] if main else ("model",)
    inside = []
    for stack in stacks:
        if stack not in main and OTHER_MODALITY.search(".".join(stack.path)):
            continue  # a tower is one block
        name = "layers" if main == [stack] else ".".join(_below(container, stack.path))
        inside.append(stack.path)
        for number, node in stack.parts.items():
            layer = Layer(node, f"{name}.{number}")
            places |= layer.read()
            if main == [stack] and tree.width:
                found.layers += (int(number),) if layer.feeds_forward else ()
                found.neurons |= layer.neurons(tree.width)
                found.outputs |= layer.outputs(tree.width)
    places |= _outside(tree, container, inside)
    found.places = {path: places[path] for path in (".".join(p) for p, _ in tree.root.shapes())}
    return found


def _stacks(tree: Tree) -> list[Node]:
    """The outermost lists of modules that have parts themselves."""
    found: list[Node] = []
    for node in tree.root.walk():
        if any(node.path[: len(stack.path)] == stack.path for stack in found):
            continue
        if node.is_list and any(child.parts for child in node.parts.values()):
            found.append(node)
    return found


def _main_stacks(tree: Tree, stacks: list[Node]) -> list[Node]:
    """The stacks nearest to the token embedding; all of them where none is known."""

    def distance(stack: Node) -> int:
        return len(stack.path) - _common(stack.path, tree.embedding or ())

    own = [stack for stack in stacks if not OTHER_MODALITY.search(".".join(stack.path))]
    return [stack for stack in own if distance(stack) == min(map(distance, own))]


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _below(container: tuple[str, ...], path: tuple[str, ...]) -> tuple[str, ...]:
    """The path without what it shares with the language model's container; never empty."""
    return path[min(_common(container, path), len(path) - 1) :]


def _outside(tree: Tree, container: tuple[str, ...], inside: list[tuple[str, ...]]) -> dict[str, Place]:
    """The places of all parameters that are in none of the stacks ``inside``."""
    norms = [
        node.name
        for node in tree.root.walk()
        if node.is_norm and node.path[:-1] == container[: len(node.path) - 1] and not _HEAD.fullmatch(node.path[0])
    ]
    head = tree.head[:1] if tree.head and tree.head[:1] != container[:1] else tree.head
    found = {}
    for path, _ in tree.root.shapes():
        if any(path[: len(stack)] == stack for stack in inside):
            continue
        place = _outside_place(path, tree.embedding, head, _below(container, path), norms)
        found[".".join(path)] = Place(place, place)
    return found


def _outside_place(
    path: tuple[str, ...],
    embedding: tuple[str, ...] | None,
    head: tuple[str, ...] | None,
    below: tuple[str, ...],
    norms: list[str],
) -> str:
    if embedding and path[: len(embedding)] == embedding:
        return "embedding"
    if (head and path[: len(head)] == head) or (_HEAD.fullmatch(below[0]) and path == below):
        return "lm_head"
    first = below[0]
    if first in norms:
        if len(norms) == 1 or _FINAL_NORM.fullmatch(first):
            return "norm"
        return "embedding" if EMBEDDING.search(first) else first
    if OTHER_MODALITY.search(".".join(below)):
        deep = next((i for i, part in enumerate(below[1:-1], 1) if _PROJECTOR.search(part)), 0)
        return ".".join(below[: deep + 1])
    if EMBEDDING.search(first) and "per_layer" not in first:
        return "embedding"
    return first
