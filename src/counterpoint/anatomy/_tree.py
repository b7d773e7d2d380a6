"""A model as a tree of named modules, from the module itself or from the names of its parameters alone."""

import itertools
import re
from collections.abc import Iterator, Mapping

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter names in model order, each with its full shape."""

_WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")
ADAPTER = re.compile(r"^(?:lora_|hada_|lokr_|oft_|boft_|vera_|ia3_|ranknum|adaption_)")

_NORM_CLASS = re.compile(r"Norm(?:Gated|\dd)?$")
NORM_NAME = re.compile(r"norm|^ln(?:_|\d|$)|_ln$|^pre_ln$", re.IGNORECASE)
EMBEDDING = re.compile(r"embed|^wte$|^wpe$|token_type", re.IGNORECASE)
OTHER_MODALITY = re.compile(r"visi|visual|image|img|audio|speech|video|tower|extend", re.IGNORECASE)


def plain_name(name: str) -> str:
    """The parameter's name without the prefixes of torch.compile, DDP, FSDP, activation checkpointing and PEFT."""
    return _WRAPPERS.sub("", name).removeprefix("base_model.model.")


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters, each once, by their names without the parts that wrappers put in."""
    return {_WRAPPERS.sub("", name): param for name, param in module.named_parameters()}


def path_of(name: str) -> str:
    """The name as the rules see it: no wrappers, and an adapted or saved module under its own name."""
    return _PEFT.sub("", plain_name(name + ".")).rstrip(".")


class Node:
    """One module: its class (empty where only names are known), its children and its own parameters."""

    def __init__(self, name: str, path: tuple[str, ...]) -> None:
        self.name, self.path, self.kind = name, path, ""
        self.children: dict[str, Node] = {}
        self.params: dict[str, tuple[int, ...]] = {}

    @property
    def parts(self) -> dict[str, "Node"]:
        """Children that are not an adapter's."""
        return {name: child for name, child in self.children.items() if not ADAPTER.match(name)}

    @property
    def is_list(self) -> bool:
        return bool(self.parts) and all(map(str.isdigit, self.parts)) and self.kind != "Sequential"

    @property
    def is_norm(self) -> bool:
        if self.kind:
            return bool(_NORM_CLASS.search(self.kind))
        return bool(NORM_NAME.search(self.name)) and not self.parts

    def walk(self) -> Iterator["Node"]:
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


class Tree:
    """A model as nodes, with the paths of its token embedding and output projection and the residual stream's width."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.root = Node("", ())
        self.embedding: tuple[str, ...] | None = None
        self.head: tuple[str, ...] | None = None
        self.width: int | None = None
        for name, shape in shapes.items():
            *path, leaf = path_of(name).split(".")
            self.node(path, create=True).params[leaf] = tuple(shape)

    def node(self, path: list[str] | tuple[str, ...], create: bool = False) -> Node:
        node = self.root
        for name in path:
            if create and name not in node.children:
                node.children[name] = Node(name, (*node.path, name))
            node = node.children[name]
        return node

    @classmethod
    def of_names(cls, shapes: Shapes) -> "Tree":
        tree = cls(shapes)
        embedded = (path for path, _ in tree.root.shapes() if len(path) > 1 and EMBEDDING.search(path[-2]))
        tree.embedding = next((path[:-1] for path in embedded if not OTHER_MODALITY.search(".".join(path))), None)
        if tree.embedding is not None:
            tree.width = next(iter(tree.node(tree.embedding).params.values()))[-1]
        return tree

    @classmethod
    def of_module(cls, model: nn.Module) -> "Tree":
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
