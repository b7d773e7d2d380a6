"""Which group each parameter of each architecture belongs to."""

import pytest
import torch
from torch import nn

from counterpoint.anatomy import plain_name
from counterpoint.errors import GroupingError
from counterpoint.surgery import GROUPINGS, Surgeon, group_parameters

ENDS = {"embedding", "norm", "lm_head"}
TIED = {"gemma", "gemma2", "gemma3_text", "gpt2"}
MIXTURES = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"}


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def members(shapes: dict[str, tuple[int, ...]], group: str, **kwargs: object) -> set[str]:
    return {name for name, groups in group_parameters(shapes, "module", **kwargs).items() if group in groups}


def test_modules_of_every_architecture(build, architecture):
    groups = {g for pieces in group_parameters(shapes_of(build(architecture))).values() for g in pieces}
    expected = ENDS - ({"lm_head"} if architecture in TIED else set())
    for layer in range(2):
        expected.add(f"layers.{layer}.attention")
        if architecture in MIXTURES:
            expected |= {f"layers.{layer}.router"} | {f"layers.{layer}.experts.{i}" for i in range(3)}
            if architecture == "qwen2_moe":
                expected.add(f"layers.{layer}.shared_expert")
        else:
            expected.add(f"layers.{layer}.mlp")
    assert groups == expected


def test_every_parameter_has_the_same_layer_in_both_groupings(build, architecture):
    shapes = shapes_of(build(architecture))
    by_layer = group_parameters(shapes, "layer")
    for name, pieces in group_parameters(shapes, "module").items():
        assert {".".join(piece.split(".")[:2]) for piece in pieces} == set(by_layer[name])


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3"])
def test_the_second_norm_feeds_the_mlp(build, architecture):
    shapes = shapes_of(build(architecture))
    assert "model.layers.1.post_attention_layernorm.weight" in members(shapes, "layers.1.mlp")
    assert "model.layers.1.input_layernorm.weight" in members(shapes, "layers.1.attention")


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text", "olmo2"])
def test_post_norms_belong_to_the_block_they_follow(build, architecture):
    shapes = shapes_of(build(architecture))
    assert "model.layers.0.post_attention_layernorm.weight" in members(shapes, "layers.0.attention")
    assert "model.layers.0.post_feedforward_layernorm.weight" in members(shapes, "layers.0.mlp")


def test_frozen_post_norms_still_tell_the_architecture(build):
    shapes = shapes_of(build("gemma2"))
    trained = {n: s for n, s in shapes.items() if "post_feedforward" not in n and "pre_feedforward" not in n}
    name = "model.layers.0.post_attention_layernorm.weight"
    assert name in members(shapes, "layers.0.attention", names=trained)
    assert name in members(trained, "layers.0.mlp")  # the control: without them it looks like a Llama


def test_parallel_blocks(build):
    phi = shapes_of(build("phi"))
    assert "model.layers.0.input_layernorm.weight" in members(phi, "layers.0.attention")
    neox = shapes_of(build("gpt_neox"))
    assert "gpt_neox.layers.0.post_attention_layernorm.bias" in members(neox, "layers.0.mlp")


def test_gpt2_positions_are_embeddings(build):
    gpt2 = shapes_of(build("gpt2"))
    assert members(gpt2, "embedding") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert "transformer.h.0.ln_2.bias" in members(gpt2, "layers.0.mlp")


def test_fused_experts_are_cut_into_one_slice_each(build):
    groups = group_parameters(shapes_of(build("qwen3_moe")))
    expected = tuple(f"layers.1.experts.{i}" for i in range(3))
    assert groups["model.layers.1.mlp.experts.gate_up_proj"] == expected
    assert groups["model.layers.1.mlp.experts.down_proj"] == expected


def test_experts_stored_apart_have_the_same_groups():
    name = "model.layers.4.block_sparse_moe.experts.7.w1.weight"
    assert group_parameters({name: (8, 4)})[name] == ("layers.4.experts.7",)


def test_the_norm_before_a_mixture_goes_with_its_router(build):
    router = members(shapes_of(build("mixtral")), "layers.0.router")
    assert router == {"model.layers.0.mlp.gate.weight", "model.layers.0.post_attention_layernorm.weight"}


def test_gated_dense_mlp_is_no_router(build):
    assert "model.layers.0.mlp.gate_proj.weight" in members(shapes_of(build("llama")), "layers.0.mlp")


def test_tied_head_counts_once(build):
    model = build("llama", tie_word_embeddings=True)
    surgeon = Surgeon(model, "mgs")
    assert "lm_head" not in surgeon.groups
    both = [*model.named_parameters(), ("lm_head.weight", model.lm_head.weight)]
    assert Surgeon(both, "mgs").groups == surgeon.groups


@pytest.mark.filterwarnings("ignore")  # peft's and transformers' own deprecations
def test_lora_factors_belong_to_the_module_they_adapt(build):
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj", "embed_tokens"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(build("llama"), config)
    surgeon = Surgeon(model, "mgs")
    blocks = [f"layers.{layer}.{block}" for layer in range(2) for block in ("attention", "mlp")]
    assert sorted(surgeon.groups) == sorted(["embedding", "lm_head", *blocks])


@pytest.mark.filterwarnings("ignore")  # peft's and transformers' own deprecations
def test_lora_on_fused_experts_is_one_group_per_layer(build):
    peft = pytest.importorskip("peft", reason="the extra peft is not installed")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=experts)
    model = peft.get_peft_model(build("mixtral"), config)
    assert sorted(Surgeon(model, "mgs").groups) == sorted(
        f"layers.{layer}.{block}" for layer in range(2) for block in ("attention", "experts")
    )


@pytest.mark.parametrize(
    "name",
    [
        "_orig_mod.model.layers.3.mlp.up_proj.weight",
        "module.model.layers.3.mlp.up_proj.weight",
        "_fsdp_wrapped_module.model.layers.3._fsdp_wrapped_module.mlp.up_proj.weight",
        "model.layers.3._checkpoint_wrapped_module.mlp.up_proj.weight",
        "model.layers.3._orig_mod.mlp.up_proj.weight",
        "module._orig_mod.base_model.model.model.layers.3.mlp.up_proj.lora_A.default.weight",
        "base_model.model.model.layers.3.mlp.up_proj.base_layer.weight",
        "model.language_model.layers.3.mlp.up_proj.weight",
        "layers.3.mlp.up_proj.weight",
    ],
)
def test_wrapper_prefixes_do_not_matter(name):
    assert group_parameters({name: (2, 2)})[name] == ("layers.3.mlp",)


def test_tensor_groups_are_the_parameters_names(build):
    shapes = shapes_of(build("mixtral"))
    assert group_parameters(shapes, "tensor") == {name: (name,) for name in shapes}
    assert plain_name("_orig_mod.model.norm.weight") == "model.norm.weight"


def test_global_is_one_group(build, architecture):
    assert set(group_parameters(shapes_of(build(architecture)), "global").values()) == {("global",)}


def test_frozen_parameters_are_left_out(build):
    named = {"model.norm.weight": nn.Parameter(torch.ones(2)), "vision.w": nn.Parameter(torch.ones(2), False)}
    assert Surgeon(named, "mgs").groups == ("norm",)
    model = build("llama")
    model.model.layers[0].requires_grad_(False)
    assert Surgeon(model, grouping="layer").groups == ("embedding", "layers.1", "norm", "lm_head")


def test_own_rule():
    shapes = {"a.weight": (4, 2), "b.weight": (3,)}
    assert group_parameters(shapes, lambda name, shape: name[0]) == {"a.weight": ("a",), "b.weight": ("b",)}
    halves = group_parameters(shapes, lambda name, shape: ["top", "bottom"] if len(shape) == 2 else "rest")
    assert halves == {"a.weight": ("top", "bottom"), "b.weight": ("rest",)}


@pytest.mark.parametrize("answer", [None, "", 3, [], ["x", None]])
def test_own_rule_without_an_answer(answer):
    with pytest.raises(GroupingError, match="for the parameter 'a'"):
        group_parameters({"a": (2,)}, lambda name, shape: answer)


def test_own_rule_that_cuts_unevenly():
    with pytest.raises(GroupingError, match="into 2 slices; dimension 0 must be a multiple"):
        group_parameters({"a": (3,)}, lambda name, shape: ["x", "y"])


def test_unknown_grouping_names_the_nearest():
    with pytest.raises(GroupingError, match=r"Unknown grouping 'modul': did you mean 'module'\?"):
        group_parameters({}, "modul")
    with pytest.raises(GroupingError, match="cannot be imported"):
        group_parameters({}, "counterpoint.surgery:no_such_rule")


def test_registry_is_readable():
    assert list(GROUPINGS) == ["global", "layer", "module", "tensor"]
