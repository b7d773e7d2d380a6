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

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter names in model order, each with its full shape."""

_WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")
_ADAPTER = re.compile(r"^(?:lora_|hada_|lokr_|oft_|boft_|vera_|ia3_|ranknum|adaption_)")

_NORM_CLASS = re.compile(r"Norm(?:Gated|\dd)?$")
_NORM_NAME = re.compile(r"norm|^ln(?:_|\d|$)|_ln$|^pre_ln$", re.IGNORECASE)
_FINAL_NORM = re.compile(
    r"(?:final_|out_|output_)?(?:layer_?norm|norm)(?:_f)?|ln_f|ln_out|norm_f|out_norm", re.IGNORECASE
)
_EMBEDDING = re.compile(r"embed|^wte$|^wpe$|token_type", re.IGNORECASE)
_HEAD = re.compile(r"lm_head|embed_out|head|output|cls|lm_loss|pred_layer|generator_\w+")
_OTHER_MODALITY = re.compile(r"visi|visual|image|img|audio|speech|video|tower|extend", re.IGNORECASE)
_PROJECTOR = re.compile(r"merger|projector|connector")

# What a block is, by the end of its class, then by its name: `mixer` and `self_attn` may be of any kind.
_CLASSES = (
    ("linear_attention", re.compile(r"DeltaNet$|Delta\w*Attention$|Lightning\w*Attention$")),
    ("mamba", re.compile(r"(?:Mamba|Bamba)\d?(?:Mixer|Layer)$")),
    ("conv", re.compile(r"ShortConv(?:olution)?$")),
    ("recurrent", re.compile(r"Recurrent(?:Block)?$")),
    ("cross_attention", re.compile(r"CrossAttention$")),
    ("attention", re.compile(r"(?:Attention|Attn|MLA)(?:Block|Layer)?$")),
    ("mlp", re.compile(r"(?:MLP|Mlp|FFN|FeedForward|Mo[eE])(?:Block|Layer)?$")),
)
_NAMES = (
    ("linear_attention", re.compile(r"linear_att(?:n|ention)")),
    ("mamba", re.compile(r"mamba|ssm")),
    ("conv", re.compile(r"conv|short_conv")),
    ("recurrent", re.compile(r"mlstm_layer|recurrent|rglru")),
    ("cross_attention", re.compile(r"cross_?att(?:n|ention)|encoder_attn")),
    ("attention", re.compile(r"(?:self_)?att(?:n|ention|entions)?|multi_head_attention|rel_attn")),
    ("shared_expert", re.compile(r"shared_(?:mlp|experts?|expert_gate)")),
    ("router", re.compile(r"router")),
    ("experts", re.compile(r"experts")),
    ("mlp", re.compile(r"mlps?|ffns?|ff|feed_?forward|mlp_block|block_sparse_moe|moe")),
)
_MIXERS = ("attention", "linear_attention", "mamba", "conv", "recurrent", "cross_attention")
_LOOSE_MLP = re.compile(r"fc1|fc2|fc_in|fc_out|lin(?:ear)?_?[12]|intermediate|output")
"""Halves of an MLP that lie in the layer itself (OPT, BERT)."""

_ROUTED = ("mixture", "experts", "router")

_MLP_SIDE = re.compile(r"mlp|ffn|moe|feed_?forward|channel|(?:^|_)ff(?:_|$)|(?:ln|norm)_?2$|^final_layer_norm$")
_MIXER_SIDE = re.compile(
    r"^input|att(?:n|ention)|mixer|operator|temporal|mlstm|mamba|^(?:pre_)?ln$|(?:ln|norm)_?1$", re.IGNORECASE
)
_POST_ATTENTION = re.compile(r"post_att(?:n|ention)_(?:layer_?)?norm")

_OUTPUT_PROJECTION = re.compile(r"(?:o_proj|out_proj|dense|c_proj|proj|Wo|o)$")
_DOWN = re.compile(r"down|c_proj|fc2|fc_out|4h_to_h|w2|output|lin2|proj_out|value")


@dataclass(frozen=True)
class NeuronAxis:
    """How one weight is cut into the neurons of its layer: dimension ``dim``, which holds them ``times`` over.

    ``part`` is ``gate``, ``up`` or ``down``; a weight that holds gate and up one after the other has ``times`` 2.
    """

    layer: int
    dim: int
    times: int
    part: str = "up"


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: its layer (``layers.3``, or its block outside the layers) and its block.

    With ``experts`` above 1 it holds so many of them, equal slices along dimension 0: ``BLOCK.0``, ``BLOCK.1``, ...
    """

    layer: str
    block: str
    experts: int = 1

    @property
    def blocks(self) -> tuple[str, ...]:
        """The block of the parameter, or of each of its slices."""
        return tuple(f"{self.block}.{i}" for i in range(self.experts)) if self.experts > 1 else (self.block,)


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
    def of(cls, source: "nn.Module | Shapes | Anatomy") -> "Anatomy":
        """The anatomy of a module, or of names with shapes."""
        if isinstance(source, Anatomy):
            return source
        return _read(_Tree.of_module(source) if isinstance(source, nn.Module) else _Tree.of_names(source))

    def place(self, name: str) -> Place:
        """Where a parameter lies; one that was not there when the anatomy was read is a block under its own name."""
        path = path_of(name)
        return self.places.get(path) or Place(path, path)

    def module_of(self, name: str) -> str:
        """The block of a parameter as one name: ``layers.0.experts`` for a tensor of all experts."""
        return self.place(name).block

    def layer_of(self, name: str) -> int | None:
        """The number of the language model's layer that a parameter belongs to; None outside."""
        match = re.fullmatch(r"layers\.(\d+)", self.place(name).layer)
        return int(match[1]) if match else None

    def neuron_axis(self, name: str) -> NeuronAxis | None:
        """Where the neurons of an MLP weight lie; None for every other parameter."""
        return self.neurons.get(path_of(name))

    def is_output_projection(self, name: str) -> bool:
        """Whether the inputs of this weight are the outputs of attention heads."""
        return path_of(name) in self.outputs


def plain_name(name: str) -> str:
    """The parameter's name without the prefixes of torch.compile, DDP, FSDP, activation checkpointing and PEFT."""
    return _WRAPPERS.sub("", name).removeprefix("base_model.model.")


def path_of(name: str) -> str:
    """The name as the rules see it: no wrappers, and an adapted or saved module under its own name."""
    return _PEFT.sub("", plain_name(name + ".")).rstrip(".")


class _Node:
    """One module: its class (empty where only names are known), its children and its own parameters."""

    def __init__(self, name: str, path: tuple[str, ...]) -> None:
        self.name, self.path, self.kind = name, path, ""
        self.children: dict[str, _Node] = {}
        self.params: dict[str, tuple[int, ...]] = {}

    @property
    def parts(self) -> dict[str, "_Node"]:
        """Children that are not an adapter's."""
        return {name: child for name, child in self.children.items() if not _ADAPTER.match(name)}

    @property
    def is_list(self) -> bool:
        return bool(self.parts) and all(map(str.isdigit, self.parts)) and self.kind != "Sequential"

    @property
    def is_norm(self) -> bool:
        if self.kind:
            return bool(_NORM_CLASS.search(self.kind))
        return bool(_NORM_NAME.search(self.name)) and not self.parts

    def walk(self) -> Iterator["_Node"]:
        yield self
        for child in self.children.values():
            yield from child.walk()

    def shapes(self) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
        """Path below this node, and shape, of every parameter."""
        for name, shape in self.params.items():
            yield (name,), shape
        for child in self.children.values():
            for path, shape in child.shapes():
                yield (child.name, *path), shape


class _Tree:
    """A model as nodes, with the paths of its token embedding and output projection and the residual stream's width."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.root = _Node("", ())
        self.embedding: tuple[str, ...] | None = None
        self.head: tuple[str, ...] | None = None
        self.width: int | None = None
        for name, shape in shapes.items():
            *path, leaf = path_of(name).split(".")
            self.node(path, create=True).params[leaf] = tuple(shape)

    def node(self, path: list[str] | tuple[str, ...], create: bool = False) -> _Node:
        node = self.root
        for name in path:
            if create and name not in node.children:
                node.children[name] = _Node(name, (*node.path, name))
            node = node.children[name]
        return node

    @classmethod
    def of_names(cls, shapes: Shapes) -> "_Tree":
        tree = cls(shapes)
        embedded = (path for path, _ in tree.root.shapes() if len(path) > 1 and _EMBEDDING.search(path[-2]))
        tree.embedding = next((path[:-1] for path in embedded if not _OTHER_MODALITY.search(".".join(path))), None)
        if tree.embedding is not None:
            tree.width = next(iter(tree.node(tree.embedding).params.values()))[-1]
        return tree

    @classmethod
    def of_module(cls, model: nn.Module) -> "_Tree":
        tree = cls({name: tuple(param.shape) for name, param in model.named_parameters()})
        tokens = _ask(model, "get_input_embeddings")
        ends = {id(tokens): "embedding", id(_ask(model, "get_output_embeddings")): "head"}
        weight = getattr(tokens, "weight", None)
        tree.width = None if weight is None else weight.shape[-1]
        for name, module in model.named_modules():
            path = tuple(filter(None, path_of(name).split(".")))
            if id(module) in ends:
                setattr(tree, ends[id(module)], path)
            try:
                # A wrapper and what it wraps have one path here; the inner one comes last and gives the class.
                tree.node(path).kind = type(module).__name__
            except KeyError:
                continue  # a module without parameters
        return tree


def _ask(model: nn.Module, method: str) -> object:
    """What transformers' getter gives, of the model inside wrappers; None where there is none."""
    asked = next((module for module in itertools.islice(model.modules(), 8) if hasattr(module, method)), None)
    try:
        return getattr(asked, method)() if asked is not None else None
    except (AttributeError, NotImplementedError):
        return None


def _read(tree: _Tree) -> Anatomy:
    found = Anatomy()
    stacks = _stacks(tree)
    main = _main_stacks(tree, stacks)
    container = main[0].path[:-1] if main else ("model",)
    inside = []
    for stack in stacks:
        if stack not in main and _OTHER_MODALITY.search(".".join(stack.path)):
            continue  # a tower is one block
        name = "layers" if main == [stack] else ".".join(_below(container, stack.path))
        inside.append(stack.path)
        for number, node in stack.parts.items():
            layer = _Layer(node, f"{name}.{number}", f"{name}.{number}", found)
            layer.read()
            if main == [stack] and tree.width:
                layer.units(tree.width)
    _outside(tree, found, container, inside)
    # In model order, which groups follow.
    found.places = {path: found.places[path] for path in (".".join(p) for p, _ in tree.root.shapes())}
    found.layers = tuple(sorted(set(found.layers)))
    return found


def _stacks(tree: _Tree) -> list[_Node]:
    """The outermost lists of modules that have parts themselves."""
    found: list[_Node] = []
    for node in tree.root.walk():
        if any(node.path[: len(stack.path)] == stack.path for stack in found):
            continue
        if node.is_list and any(child.parts for child in node.parts.values()):
            found.append(node)
    return found


def _main_stacks(tree: _Tree, stacks: list[_Node]) -> list[_Node]:
    """The stacks nearest to the token embedding; all of them where none is known."""

    def distance(stack: _Node) -> int:
        return len(stack.path) - _common(stack.path, tree.embedding or ())

    own = [stack for stack in stacks if not _OTHER_MODALITY.search(".".join(stack.path))]
    return [stack for stack in own if distance(stack) == min(map(distance, own))]


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _below(container: tuple[str, ...], path: tuple[str, ...]) -> tuple[str, ...]:
    """The path without what it shares with the language model's container; never empty."""
    return path[min(_common(container, path), len(path) - 1) :]


def _outside(tree: _Tree, found: Anatomy, container: tuple[str, ...], inside: list[tuple[str, ...]]) -> None:
    norms = [
        node.name
        for node in tree.root.walk()
        if node.is_norm and node.path[:-1] == container[: len(node.path) - 1] and not _HEAD.fullmatch(node.path[0])
    ]
    head = tree.head[:1] if tree.head and tree.head[:1] != container[:1] else tree.head
    for path, _ in tree.root.shapes():
        if any(path[: len(stack)] == stack for stack in inside):
            continue
        place = _outside_place(path, tree.embedding, head, _below(container, path), norms)
        found.places[".".join(path)] = Place(place, place)


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
        return "embedding" if _EMBEDDING.search(first) else first
    if _OTHER_MODALITY.search(".".join(below)):
        deep = next((i for i, part in enumerate(below[1:-1], 1) if _PROJECTOR.search(part)), 0)
        return ".".join(below[: deep + 1])
    if _EMBEDDING.search(first) and "per_layer" not in first:
        return "embedding"
    return first


class _Layer:
    """One layer: its children as blocks, each of its parameters at its place."""

    def __init__(self, node: _Node, prefix: str, layer: str, found: Anatomy) -> None:
        self.node, self.prefix, self.layer, self.found = node, prefix, layer, found
        self.children = dict(_expanded(node.parts))
        self.kinds = {name: _kind_of(child) for name, child in self.children.items()}
        loose = [name for name, kind in self.kinds.items() if kind is None and _LOOSE_MLP.fullmatch(name)]
        if len(loose) > 1 and not {"mlp", "mixture"} & set(self.kinds.values()):
            self.kinds |= dict.fromkeys(loose, "mlp")

    def read(self) -> None:
        if not self._knows_blocks and (whole := _kind_of(self.node)):
            self._put(self.node, whole)  # its stack is one of blocks, not of layers
            return
        blocks = _block_names(self.kinds)
        for name, child in self.children.items():
            kind = self.kinds[name]
            if kind == "norm":
                self._put(child, _norm_block(name, blocks, self.kinds) or name)
            elif kind == "experts":
                self._experts(child, "experts")
            elif kind == "mixture":
                self._mixture(child, "", "router")
            elif kind in _MIXERS and _is_mixture(child):
                self._mixture(child, f"{blocks[name]}.", blocks[name])
            elif (
                kind is None and (inner := _Layer(child, f"{self.prefix}.{name}", self.layer, self.found))._knows_blocks
            ):
                inner.read()  # a layer inside the layer (Zamba)
            else:
                self._put(child, blocks.get(name, name))
        for name in self.node.params:
            self._set((*self.node.path, name), name)

    @property
    def _knows_blocks(self) -> bool:
        return any(kind in (*_MIXERS, "mlp", "mixture") for kind in self.kinds.values())

    def _mixture(self, node: _Node, prefix: str, rest: str) -> None:
        """Router, experts and shared expert of one block; ``rest`` takes norms, adapters and loose parameters."""
        for name in node.params:
            self._set((*node.path, name), rest)
        for name, child in node.children.items():
            if "shared" in name:
                self._put(child, f"{prefix}shared_expert")
            elif _is_experts(child):
                self._experts(child, f"{prefix}experts")
            elif name in ("gate", "router") or "Router" in child.kind:
                self._put(child, f"{prefix}router")
            else:
                self._put(child, rest if prefix or child.is_norm or _ADAPTER.match(name) else name)

    def _experts(self, node: _Node, block: str) -> None:
        fused = {shape[0] for path, shape in node.shapes() if len(shape) > 2 and not _is_adapter(path)}
        for path, shape in node.shapes():
            full = (*node.path, *path)
            if path[0].isdigit():
                self._set(full, f"{block}.{path[0]}")
            elif path[0] == "router":
                self._set(full, block.removesuffix("experts") + "router")
            elif shape[0] in fused and len(shape) > 1 and not _is_adapter(path):
                self._set(full, block, shape[0])
            else:
                self._set(full, block)

    def _put(self, node: _Node, block: str) -> None:
        for path, _ in node.shapes():
            self._set((*node.path, *path), block)

    def _set(self, path: tuple[str, ...], block: str, experts: int = 1) -> None:
        self.found.places[".".join(path)] = Place(self.layer, f"{self.prefix}.{block}", experts)

    def units(self, width: int) -> None:
        """Adds the layer's neurons and heads, of dense MLPs and plain attention whose shapes tell them."""
        number = int(self.layer.rpartition(".")[2])
        if any(kind in ("mlp", *_ROUTED) for kind in self.kinds.values()):
            self.found.layers = (*self.found.layers, number)
        dense = [child for name, child in self.children.items() if self.kinds[name] == "mlp"]
        if len(dense) == 1 or all(_LOOSE_MLP.fullmatch(child.name) for child in dense):
            self.found.neurons |= _neuron_axes(dense, number, width)
        for name, child in self.children.items():
            if self.kinds[name] != "attention" or _is_mixture(child):
                continue
            for projection in child.parts.values():
                shape = projection.params.get("weight", ())
                outputs = shape[-1:] if projection.kind == "Conv1D" else shape[:1]
                if _OUTPUT_PROJECTION.fullmatch(projection.name) and len(shape) == 2 and outputs == (width,):
                    self.found.outputs[".".join((*projection.path, "weight"))] = number


def _expanded(parts: Mapping[str, _Node]) -> Iterator[tuple[str, _Node]]:
    """Children of a layer; of a list of blocks its elements, as ``self_attn.0``."""
    for name, child in parts.items():
        if child.is_list and name != "experts":
            yield from ((f"{name}.{number}", element) for number, element in child.parts.items())
        else:
            yield name, child


def _kind_of(node: _Node) -> str | None:
    name = next((part for part in reversed(node.path) if not part.isdigit()), "")
    if node.is_norm or (not node.kind and _NORM_NAME.search(name) and not node.parts):
        return "norm"
    named = next((kind for kind, pattern in _NAMES if pattern.fullmatch(name)), None)
    if named not in ("shared_expert", "experts", "router", "cross_attention"):
        named = next((kind for kind, pattern in _CLASSES if pattern.search(node.kind)), named)
    return "mixture" if named in (None, "mlp") and _is_mixture(node) else named


def _is_mixture(node: _Node) -> bool:
    return any(map(_is_experts, node.parts.values()))


def _is_experts(node: _Node) -> bool:
    return node.name == "experts" or (node.kind.endswith("Experts") and "shared" not in node.name)


def _is_adapter(path: tuple[str, ...]) -> bool:
    return any(map(_ADAPTER.match, path))


def _block_names(kinds: Mapping[str, str | None]) -> dict[str, str]:
    """The block of every child that is neither a norm nor unknown; two of one kind go by their own names."""
    known = {name: kind for name, kind in kinds.items() if kind is not None and kind != "norm"}
    often = Counter(kind for name, kind in known.items() if "." not in name and not _LOOSE_MLP.fullmatch(name))
    blocks = {}
    for name, kind in known.items():
        base, _, number = name.partition(".")
        usual = any(kind == own and pattern.fullmatch(base) for own, pattern in _NAMES)
        block = "router" if kind in _ROUTED else kind if usual or often[kind] < 2 else base
        blocks[name] = f"{block}.{number}" if number else block
    return blocks


def _norm_block(norm: str, blocks: Mapping[str, str], kinds: Mapping[str, str | None]) -> str | None:
    """The block that a norm feeds or closes; None where its name does not tell."""
    base, _, number = norm.partition(".")
    near = [name for name in blocks if not number or name.endswith(f".{number}")] or list(blocks)
    mixers = sorted((name for name in near if kinds[name] in _MIXERS), key=lambda n: _MIXERS.index(str(kinds[n])))
    mlps = sorted((name for name in near if kinds[name] in ("mlp", *_ROUTED)), key=lambda n: kinds[n] != "mlp")
    if not mixers or not mlps:
        only = mixers or mlps or ([n for n, kind in kinds.items() if kind is None] if len(kinds) == 2 else [])
        return blocks.get(only[0], only[0]) if only else None
    side = _side(base, [name.partition(".")[0] for name, kind in kinds.items() if kind == "norm"])
    if side == "mixer":
        named = [name for name in mixers if name.partition(".")[0] in base]
        return blocks[max(named, key=len) if named else mixers[0]]
    if side == "mlp":
        # Gemma 4 numbers them where experts lie beside the MLP: the second norms are the experts' own.
        return blocks[mlps[-1 if base.endswith("_2") and kinds[mlps[-1]] in _ROUTED else 0]]
    return None


def _side(norm: str, norms: list[str]) -> str | None:
    if _POST_ATTENTION.fullmatch(norm):
        # It closes the attention where another norm feeds the MLP, or where no norm feeds the attention (OLMo 2);
        # in all other models it is what feeds the MLP.
        feeding = [name for name in norms if name != norm and not name.startswith("post")]
        closes = any(map(_MLP_SIDE.search, feeding)) or not any(map(_MIXER_SIDE.search, feeding))
        return "mixer" if closes else "mlp"
    if _MLP_SIDE.search(norm):
        return "mlp"
    return "mixer" if _MIXER_SIDE.search(norm) else None


def _neuron_axes(nodes: list[_Node], layer: int, width: int) -> dict[str, NeuronAxis]:
    """The weights of one MLP with their neurons along the dimension that is not the residual stream's.

    Nothing where shapes and classes leave it open: no way in or no way out, or square weights of unknown classes.
    """
    projections = [n for node in nodes for n in node.walk() if len(n.params.get("weight", ())) == 2]
    projections = [n for n in projections if width in n.params["weight"] and not _is_adapter(n.path)]
    others = [max(n.params["weight"], key=lambda size: size != width) for n in projections]
    count = min((size for size in others if size != width), default=width)
    found = {}
    for node, other in zip(projections, others, strict=True):
        shape = node.params["weight"]
        if other % count or (other == width != count) or (count == width and not node.kind):
            continue
        down = _goes_down(node, width, square=count == width)
        turned = node.kind == "Conv1D"
        dim = int(down != turned) if count == width else shape.index(other)
        if node.kind and dim != int(down != turned):
            return {}
        part = "down" if down else "gate" if "gate" in node.name or node.name == "w1" else "up"
        found[".".join((*node.path, "weight"))] = NeuronAxis(layer, dim, other // count, part)
    downs = [axis for axis in found.values() if axis.part == "down"]
    return found if len(downs) == 1 and downs[0].times == 1 else {}


def _goes_down(node: _Node, width: int, square: bool) -> bool:
    """Whether the projection's outputs are the residual stream."""
    if square or not node.kind:
        bias = node.params.get("bias")
        return bool(_DOWN.search(node.name)) if square or bias is None else bias[0] == width
    shape = node.params["weight"]
    return shape[1 if node.kind == "Conv1D" else 0] == width
