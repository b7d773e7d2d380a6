"""The rules inside one layer: what kind of block each child is, whose a norm is, and where neurons and heads lie."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ._tree import ADAPTER, NORM_NAME, Node

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


class Layer:
    """One layer: its children as blocks, each of its parameters at its place."""

    def __init__(self, node: Node, prefix: str, layer: str | None = None) -> None:
        self.node, self.prefix, self.layer = node, prefix, layer or prefix
        self.places: dict[str, Place] = {}
        self.children = dict(_expanded(node.parts))
        self.kinds = {name: _kind_of(child) for name, child in self.children.items()}
        loose = [name for name, kind in self.kinds.items() if kind is None and _LOOSE_MLP.fullmatch(name)]
        if len(loose) > 1 and not {"mlp", "mixture"} & set(self.kinds.values()):
            self.kinds |= dict.fromkeys(loose, "mlp")

    def read(self) -> dict[str, Place]:
        """The place of each of the layer's parameters, by path."""
        if not self._knows_blocks and (whole := _kind_of(self.node)):
            self._put(self.node, whole)  # its stack is one of blocks, not of layers
            return self.places
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
            elif kind is None and (inner := Layer(child, f"{self.prefix}.{name}", self.layer))._knows_blocks:
                self.places |= inner.read()  # a layer inside the layer (Zamba)
            else:
                self._put(child, blocks.get(name, name))
        for name in self.node.params:
            self._set((*self.node.path, name), name)
        return self.places

    @property
    def _knows_blocks(self) -> bool:
        return any(kind in (*_MIXERS, "mlp", "mixture") for kind in self.kinds.values())

    def _mixture(self, node: Node, prefix: str, rest: str) -> None:
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
                self._put(child, rest if prefix or child.is_norm or ADAPTER.match(name) else name)

    def _experts(self, node: Node, block: str) -> None:
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

    def _put(self, node: Node, block: str) -> None:
        for path, _ in node.shapes():
            self._set((*node.path, *path), block)

    def _set(self, path: tuple[str, ...], block: str, experts: int = 1) -> None:
        self.places[".".join(path)] = Place(self.layer, f"{self.prefix}.{block}", experts)

    @property
    def feeds_forward(self) -> bool:
        """Whether the layer has a feed-forward block, dense or routed."""
        return any(kind in ("mlp", *_ROUTED) for kind in self.kinds.values())

    def neurons(self, width: int) -> dict[str, NeuronAxis]:
        """Where the neurons of the layer's one dense MLP lie, by path."""
        dense = [child for name, child in self.children.items() if self.kinds[name] == "mlp"]
        loose = all(_LOOSE_MLP.fullmatch(child.name) for child in dense)
        return _neuron_axes(dense, self._number, width) if len(dense) == 1 or loose else {}

    def outputs(self, width: int) -> dict[str, int]:
        """The output projections of plain attention with the layer's number, by path."""
        found = {}
        for name, child in self.children.items():
            if self.kinds[name] != "attention" or _is_mixture(child):
                continue
            for projection in child.parts.values():
                shape = projection.params.get("weight", ())
                written = shape[-1:] if projection.kind == "Conv1D" else shape[:1]
                if _OUTPUT_PROJECTION.fullmatch(projection.name) and len(shape) == 2 and written == (width,):
                    found[".".join((*projection.path, "weight"))] = self._number
        return found

    @property
    def _number(self) -> int:
        return int(self.layer.rpartition(".")[2])


def _expanded(parts: Mapping[str, Node]) -> Iterator[tuple[str, Node]]:
    """Children of a layer; of a list of blocks its elements, as ``self_attn.0``."""
    for name, child in parts.items():
        if child.is_list and name != "experts":
            yield from ((f"{name}.{number}", element) for number, element in child.parts.items())
        else:
            yield name, child


def _kind_of(node: Node) -> str | None:
    name = next((part for part in reversed(node.path) if not part.isdigit()), "")
    if node.is_norm or (not node.kind and NORM_NAME.search(name) and not node.parts):
        return "norm"
    named = next((kind for kind, pattern in _NAMES if pattern.fullmatch(name)), None)
    if named not in ("shared_expert", "experts", "router", "cross_attention"):
        named = next((kind for kind, pattern in _CLASSES if pattern.search(node.kind)), named)
    return "mixture" if named in (None, "mlp") and _is_mixture(node) else named


def _is_mixture(node: Node) -> bool:
    return any(map(_is_experts, node.parts.values()))


def _is_experts(node: Node) -> bool:
    return node.name == "experts" or (node.kind.endswith("Experts") and "shared" not in node.name)


def _is_adapter(path: tuple[str, ...]) -> bool:
    return any(map(ADAPTER.match, path))


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


def _neuron_axes(nodes: list[Node], layer: int, width: int) -> dict[str, NeuronAxis]:
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


def _goes_down(node: Node, width: int, square: bool) -> bool:
    """Whether the projection's outputs are the residual stream."""
    if square or not node.kind:
        bias = node.params.get("bias")
        return bool(_DOWN.search(node.name)) if square or bias is None else bias[0] == width
    shape = node.params["weight"]
    return shape[1 if node.kind == "Conv1D" else 0] == width
