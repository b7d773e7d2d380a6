"""Where every parameter lies: on every causal language model of transformers, exactly on known families."""

import re
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from counterpoint.anatomy import Anatomy, path_of
from counterpoint.surgery import GROUPINGS, group_parameters
from families import FAMILIES, SMALL, build, groups_of

UNBUILT = {
    *("cohere_compass_text", "dbrx", "dots1", "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2_moe", "ministral"),
    *("nemotron", "qwen4_exp", "qwen4_exp_text"),
    *("gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody", "reformer"),
}
"""Types of which transformers builds no causal language model from the defaults of their configuration."""


def shrink(config):
    """The configuration with at most four layers, lists of layers cut alike."""
    text = config.get_text_config()
    layers = min(4, getattr(text, "num_hidden_layers", 4) or 4)
    for key in ("layer_types", "mlp_layer_types", "layers_block_type"):
        if isinstance(vars(text).get(key), list):
            setattr(text, key, getattr(text, key)[:layers])
    text.num_hidden_layers = layers
    return config


def default_model(kind):
    """The model of a type's default configuration, with few layers where these can be had, on the meta device."""
    failed = None
    for change in (shrink, lambda config: config):
        try:
            with warnings.catch_warnings(), torch.device("meta"):
                warnings.simplefilter("ignore")
                return AutoModelForCausalLM.from_config(change(AutoConfig.for_model(kind)))
        except (ValueError, NotImplementedError) as error:  # settings of four layers that do not go together
            failed = error
    raise failed


@pytest.mark.parametrize("kind", sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - UNBUILT))
def test_every_causal_language_model(kind):
    model = default_model(kind)
    shapes = {name: tuple(param.shape) for name, param in model.named_parameters()}
    anatomy = Anatomy.of(model)
    groups = group_parameters(model, "module", names=shapes, anatomy=anatomy)
    layers = group_parameters(model, "layer", names=shapes, anatomy=anatomy)
    assert list(groups) == list(shapes)
    for name, pieces in groups.items():
        assert pieces
        assert len(pieces) == 1 or shapes[name][0] == len(pieces)
        (layer,) = layers[name]
        assert all(piece == layer or piece.startswith(layer + ".") for piece in pieces)
    for layer in layers_of(model):
        mixing = {piece for name in groups if within(name, layer, MIXERS) for piece in groups[name]}
        feeding = {piece for name in groups if within(name, layer, MLPS) for piece in groups[name]}
        assert not mixing & feeding, layer
    for name, shape in shapes.items():
        if re.search(r"\.experts\.[^.]+$", name) and len(shape) == 3:
            assert len(groups[name]) == shape[0], "routed experts are apart"


MIXERS = r"self_attn|attn|attention|linear_attn|mamba|conv|self_attention"
MLPS = r"mlp|feed_forward|ffn|fc1|fc2|block_sparse_moe"
OTHER = re.compile(r"vision|image|audio")


def layers_of(model):
    """Paths of the layers of the language model."""
    paths = (name for name, _ in model.named_modules() if not OTHER.search(name))
    return [path for path in paths if re.search(r"(?:^|\.)(?:layers|h|blocks|layer)\.\d+$", path)]


def within(name, layer, blocks):
    return re.match(rf"{re.escape(layer)}\.(?:{blocks})\.", name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_groups_of_well_known_families(kind):
    groups = group_parameters(build(kind, "meta"), "module")
    assert {piece for pieces in groups.values() for piece in pieces} == groups_of(kind)


@pytest.mark.parametrize("kind", sorted(set(FAMILIES) - {"nemotron_h", "mamba2", "recurrent_gemma"}))
def test_names_alone_give_the_same_places(kind):
    """Where neither classes nor odd names decide, so that a checkpoint without configuration is read as its model."""
    model = build(kind, "meta")
    named = Anatomy.of({name: tuple(param.shape) for name, param in model.named_parameters()})
    whole = Anatomy.of(model)
    assert named.places == whole.places
    assert named.neurons == whole.neurons


NORMS = {
    "llama": {"attention": ["input_layernorm"], "mlp": ["post_attention_layernorm"]},
    "phi": {"attention": ["input_layernorm"], "mlp": []},
    "gpt_neox": {"attention": ["input_layernorm"], "mlp": ["post_attention_layernorm"]},
    "olmo2": {"attention": ["post_attention_layernorm"], "mlp": ["post_feedforward_layernorm"]},
    "gemma3_text": {
        "attention": ["input_layernorm", "post_attention_layernorm"],
        "mlp": ["post_feedforward_layernorm", "pre_feedforward_layernorm"],
    },
    "glm4": {
        "attention": ["input_layernorm", "post_self_attn_layernorm"],
        "mlp": ["post_attention_layernorm", "post_mlp_layernorm"],
    },
    "opt": {"attention": ["self_attn_layer_norm"], "mlp": ["final_layer_norm"]},
    "qwen3_moe": {"attention": ["input_layernorm"], "router": ["post_attention_layernorm"]},
    "granitemoehybrid": {"mamba": ["input_layernorm"], "router": ["post_attention_layernorm"]},
    "falcon_h1": {"attention": ["input_layernorm"], "mlp": ["pre_ff_layernorm"], "mamba": []},
    "lfm2": {"conv": ["operator_norm"], "mlp": ["ffn_norm"]},
    "nemotron_h": {"mamba": ["norm"]},
    "recurrent_gemma": {"recurrent": ["temporal_pre_norm"], "mlp": ["channel_pre_norm"]},
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_lie_with_the_block_they_feed_or_close(kind):
    model = build(kind, "meta")
    anatomy = Anatomy.of(model)
    found = {block: set() for block in NORMS[kind]}
    for name, _ in model.named_parameters():
        match = re.search(r"\.(?:layers|h)\.0\.(\w*norm\w*)\.weight$", name)
        if match:
            found[anatomy.module_of(name).removeprefix("layers.0.")].add(match[1])
    assert {block: sorted(names) for block, names in found.items()} == NORMS[kind]


NEURONS = {
    # type: {end of the weight's name in the first layer with neurons: (dim, times, part)}
    "llama": {"gate_proj": (0, 1, "gate"), "up_proj": (0, 1, "up"), "down_proj": (1, 1, "down")},
    "phi3": {"gate_up_proj": (0, 2, "gate"), "down_proj": (1, 1, "down")},
    "gpt2": {"c_fc": (1, 1, "up"), "c_proj": (0, 1, "down")},
    "starcoder2": {"c_fc": (0, 1, "up"), "c_proj": (1, 1, "down")},
    "opt": {"fc1": (0, 1, "up"), "fc2": (1, 1, "down")},
    "gpt_neox": {"dense_h_to_4h": (0, 1, "up"), "dense_4h_to_h": (1, 1, "down")},
    "lfm2": {"w1": (0, 1, "gate"), "w3": (0, 1, "up"), "w2": (1, 1, "down")},
    "mixtral": {},
    "mamba2": {},
}


@pytest.mark.parametrize("kind", NEURONS)
def test_where_neurons_lie(kind):
    model = build(kind, "meta")
    anatomy = Anatomy.of(model)
    axes = {name: axis for name, axis in anatomy.neurons.items() if axis.layer == 0}
    assert {n.split(".")[-2]: (a.dim, a.times, a.part) for n, a in axes.items()} == NEURONS[kind]
    shapes = {path_of(name): param.shape for name, param in model.named_parameters()}
    assert all(shapes[name][axis.dim] == 48 * axis.times for name, axis in axes.items())


def test_square_mlps_are_told_by_their_classes_and_refused_by_name_alone():
    model = build("llama", "meta")
    square = AutoModelForCausalLM.from_config(type(model.config)(**(SMALL | {"intermediate_size": 32})))
    assert {axis.part: axis.dim for axis in Anatomy.of(square).neurons.values()} == {"gate": 0, "up": 0, "down": 1}
    assert not Anatomy.of({name: tuple(param.shape) for name, param in square.named_parameters()}).neurons


VISION = {
    "depth": 2,
    "num_layers": 2,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "out_hidden_size": 32, "embed_dim": 32}


@pytest.mark.parametrize(
    ("kind", "outside"),
    [
        ("gemma3", {"vision_tower", "multi_modal_projector"}),
        ("qwen2_5_vl", {"visual", "visual.merger"}),
        ("qwen3_vl", {"visual", "visual.merger", "visual.deepstack_merger_list"}),
        ("mistral3", {"vision_tower", "multi_modal_projector"}),
    ],
)
def test_vision_language_models(kind, outside):
    config = AutoConfig.for_model(kind)
    for part, settings in ((config.text_config, SMALL), (config.vision_config, VISION)):
        for key, value in settings.items():
            if hasattr(part, key):
                setattr(part, key, value)
    if getattr(config.text_config, "layer_types", None):
        config.text_config.layer_types = config.text_config.layer_types[:2]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_config(config)
    groups = {piece for pieces in group_parameters(model, "module").values() for piece in pieces}
    layers = {f"layers.{layer}.{block}" for layer in range(2) for block in ("attention", "mlp")}
    assert groups - {"lm_head"} == layers | {"embedding", "norm"} | outside
    anatomy = Anatomy.of(model)
    assert {axis.layer for axis in anatomy.neurons.values()} == {0, 1}
    assert not any("vis" in name for name in (*anatomy.neurons, *anatomy.outputs))
    assert (
        anatomy.layer_of(
            next(
                n
                for n, _ in model.named_parameters()
                if ".0.norm" in n or ".0.layer_norm1" in n or ".0.attention_norm" in n
            )
        )
        is None
    )


def test_what_no_rule_knows_is_a_group_of_its_own():
    shapes = {
        "model.embed_tokens.weight": (10, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.wobble.weight": (4,),
        "model.layers.0.scale": (1,),
        "model.norm.weight": (4,),
        "model.router_bias": (2,),
        "score.weight": (2, 4),
    }
    groups = group_parameters(shapes, "module")
    assert [pieces[0] for pieces in groups.values()] == [
        "embedding",
        "layers.0.attention",
        "layers.0.wobble",
        "layers.0.scale",
        "norm",
        "router_bias",
        "score",
    ]


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_any_module_has_groups(grouping):
    odd = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)))
    groups = group_parameters(odd, grouping)
    assert list(groups) == [name for name, _ in odd.named_parameters()]
    assert all(pieces and all(pieces) for pieces in groups.values())
