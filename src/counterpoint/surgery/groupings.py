"""Groupings: rules from parameter names to groups.

A group is a named set of parameters treated as one vector. Four rules are built in:

========  =====================================================================================
global    one group, ``global``
layer     ``layers.0`` ..., ``embedding``, ``norm``, ``lm_head``
module    ``layers.0.attention``, ``layers.0.mlp``, ..., and for mixtures of experts
          ``layers.0.router``, ``layers.0.experts.3``, ``layers.0.shared_expert``
tensor    one group per parameter, named as the parameter
========  =====================================================================================

A module is the attention block or the MLP block of one layer with the norm that feeds it and, where the
architecture has one (Gemma 2 and 3, OLMo 2), the norm behind it. Where one norm feeds both blocks (Phi's parallel
layers) it counts as the attention's. In a mixture layer the norm goes with the router, the only part of the block
that sees every token. LoRA factors belong to the module they adapt.

Experts that are stored fused, all in one 3-D parameter, are cut into equal slices along dimension 0: a rule answers
with a tuple of names, one per slice. LoRA factors of fused experts mix the experts in one matrix and form one group
per layer, ``layers.0.experts``.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..errors import GroupingError
from ._outside import import_function

Shapes = Mapping[str, tuple[int, ...]]
"""Parameter names in model order, each with its full shape."""

Groups = dict[str, tuple[str, ...]]
"""For each parameter the groups of its equal slices along dimension 0; one name for an uncut parameter."""

Grouping = Callable[[Shapes, Iterable[str]], Groups]
"""A built-in rule: ``(shapes, frozen) -> groups``; the names of frozen parameters help to tell architectures apart."""

ParameterRule = Callable[[str, tuple[int, ...]], str | Sequence[str]]
"""A grouping of one's own: ``(name, shape) -> group`` or a sequence of groups, one per slice along dimension 0."""

_WRAPPERS = re.compile(r"(?:(?<=^)|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PEFT_SEGMENTS = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")
_BODY = r"^(?:(?:model|transformer|gpt_neox)\.)?(?:language_model\.(?:model\.)?)?"
_LAYER = re.compile(_BODY + r"(?:layers|h)\.(\d+)\.(.+)$")
_OUTSIDE = {
    "embedding": re.compile(_BODY + r"(?:embed_tokens|embed_in|wte|wpe)\."),
    "norm": re.compile(_BODY + r"(?:norm|ln_f|final_layernorm|final_layer_norm)\."),
    "lm_head": re.compile(_BODY + r"(?:lm_head|embed_out)\."),
}
_BLOCKS = {
    "self_attn": "attention",
    "attention": "attention",
    "attn": "attention",
    "input_layernorm": "attention",
    "ln_1": "attention",
    "mlp": "mlp",
    "block_sparse_moe": "mlp",
    "pre_feedforward_layernorm": "mlp",
    "post_feedforward_layernorm": "mlp",
    "post_attention_layernorm": "mlp",
    "ln_2": "mlp",
}
_MIXTURE = re.compile(r"^(?:mlp|block_sparse_moe)\.(gate|router|experts|shared_experts?|shared_expert_gate)\.(.+)$")


def plain_name(name: str) -> str:
    """The parameter's name without the prefixes of torch.compile, DDP, FSDP, activation checkpointing and PEFT."""
    return _WRAPPERS.sub("", name).removeprefix("base_model.model.")


def num_experts(name: str, shape: tuple[int, ...]) -> int:
    """How many experts the parameter holds fused along dimension 0; 1 for every other parameter."""
    path = _path(name)
    return shape[0] if re.search(r"\.experts\.[^.]+$", path) and len(shape) >= 2 else 1


def one_global_group(shapes: Shapes, frozen: Iterable[str] = ()) -> Groups:
    """Every parameter in the group ``global``."""
    return dict.fromkeys(shapes, ("global",))


def by_tensor(shapes: Shapes, frozen: Iterable[str] = ()) -> Groups:
    """Every parameter is a group of its own, named as the parameter without wrapper prefixes."""
    return {name: (plain_name(name),) for name in shapes}


def by_layer(shapes: Shapes, frozen: Iterable[str] = ()) -> Groups:
    """Every layer is a group; embedding, final norm and ``lm_head`` are groups of their own."""
    placed = {name: _place(name) for name in shapes}
    return {name: (place if rest is None else f"layers.{place}",) for name, (place, rest) in placed.items()}


def by_module(shapes: Shapes, frozen: Iterable[str] = ()) -> Groups:
    """Every attention block, MLP block, router and expert is a group; see the top of this file for the norms."""
    inside = [_LAYER.match(_path(name)) for name in (*shapes, *frozen)]
    post_normed = {match[1] for match in inside if match and match[2].startswith("post_feedforward")}
    mixtures = {match[1] for match in inside if match and _MIXTURE.match(match[2])}
    groups: Groups = {}
    for name, shape in shapes.items():
        place, rest = _place(name)
        if rest is None:
            groups[name] = (place,)
            continue
        blocks = _blocks(name, rest, tuple(shape), place in post_normed, place in mixtures)
        groups[name] = tuple(f"layers.{place}.{block}" for block in blocks)
    return groups


GROUPINGS: dict[str, Grouping] = {
    "global": one_global_group,
    "layer": by_layer,
    "module": by_module,
    "tensor": by_tensor,
}
"""The built-in groupings by name."""


def group_parameters(shapes: Shapes, grouping: str | ParameterRule = "module", frozen: Iterable[str] = ()) -> Groups:
    """The groups of every parameter of ``shapes`` under a grouping; ``frozen`` parameters are left out.

    ``grouping`` is a name in ``GROUPINGS``, ``package.module:function``, or a function ``(name, shape) -> group``.
    Raises ``GroupingError`` for an unknown grouping and for a parameter that the grouping has no group for.
    """
    if isinstance(grouping, str) and grouping in GROUPINGS:
        return GROUPINGS[grouping](shapes, frozen)
    rule = import_function(grouping, "grouping", GROUPINGS, GroupingError) if isinstance(grouping, str) else grouping
    return {name: _apply(rule, name, tuple(shape)) for name, shape in shapes.items()}


def _apply(rule: Callable[..., object], name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    answer = rule(name, shape)
    groups = (answer,) if isinstance(answer, str) else tuple(answer) if isinstance(answer, list | tuple) else ()
    if not groups or not all(isinstance(group, str) and group for group in groups):
        raise GroupingError(
            f"The grouping gave {answer!r} for the parameter {name!r}; "
            "it must give a group name, or one name per slice along dimension 0."
        )
    if len(groups) > 1 and (not shape or shape[0] % len(groups)):
        raise GroupingError(
            f"The grouping cuts {name!r} of shape {shape} into {len(groups)} slices; "
            "dimension 0 must be a multiple of the number of slices."
        )
    return groups


def _path(name: str) -> str:
    """The parameter's name as the rules see it: no wrappers, and an adapted or saved module under its own name."""
    return _PEFT_SEGMENTS.sub("", plain_name(name))


def _place(name: str) -> tuple[str, str | None]:
    """``("3", rest)`` inside layer 3, ``("embedding", None)`` and the like outside the layers."""
    path = _path(name)
    inside = _LAYER.match(path)
    if inside:
        return inside[1], inside[2]
    for group, pattern in _OUTSIDE.items():
        if pattern.match(path):
            return group, None
    raise _unknown(name)


def _blocks(name: str, rest: str, shape: tuple[int, ...], post_normed: bool, mixture: bool) -> tuple[str, ...]:
    """The blocks of one layer that the parameter (or each of its slices) belongs to."""
    part = _MIXTURE.match(rest)
    if part:
        return _expert_blocks(part[1], part[2], num_experts(name, shape))
    head = rest.split(".", 1)[0]
    if head == "post_attention_layernorm" and post_normed:
        return ("attention",)
    block = _BLOCKS.get(head)
    if block is None:
        raise _unknown(name)
    return ("router",) if mixture and block == "mlp" and head.endswith(("layernorm", "ln_2")) else (block,)


def _expert_blocks(kind: str, rest: str, experts: int) -> tuple[str, ...]:
    if kind in ("gate", "router"):
        return ("router",)
    if kind != "experts":
        return ("shared_expert",)
    first = rest.split(".", 1)[0]
    if first.isdigit():
        return (f"experts.{first}",)
    return tuple(f"experts.{i}" for i in range(experts)) if experts > 1 else ("experts",)


def _unknown(name: str) -> GroupingError:
    return GroupingError(
        f"No rule knows the parameter {name!r}, so it has no layer or module. Freeze it, use the grouping 'tensor' or "
        "'global', or give a grouping of your own: a function (name, shape) -> group, or 'package.module:function'."
    )
