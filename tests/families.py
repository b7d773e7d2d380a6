"""Tiny models of the families that people train, hybrids and mixtures included: their settings and their groups."""

import warnings

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
DELTA = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ROUTED = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "qk_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}

DENSE = ("attention", "mlp")
EXPERTS = ("experts.0", "experts.1", "experts.2", "experts.3")
MIXTURE = ("attention", "router", *EXPERTS)
SHARED = (*MIXTURE, "shared_expert")
HYBRID = ("linear_attention", "mlp")
ENDS = ("embedding", "norm", "lm_head")
PER_LAYER = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")

FAMILIES = {
    # type: (settings, blocks of every layer, groups outside)
    "llama": ({}, [DENSE] * 2, ENDS),
    "mistral": ({}, [DENSE] * 2, ENDS),
    "qwen3": ({}, [DENSE] * 2, ENDS),
    "smollm3": ({"tie_word_embeddings": True}, [DENSE] * 2, ("embedding", "norm")),
    "gemma3_text": ({"sliding_window": 64}, [DENSE] * 2, ("embedding", "norm")),
    "gemma4_text": (
        {
            "num_hidden_layers": 6,
            "vocab_size_per_layer_input": 100,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "sliding_window": 64,
            "global_head_dim": 8,
        },
        [(*DENSE, *PER_LAYER)] * 6,
        ("embedding", "norm", "embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm"),
    ),
    "phi": ({"partial_rotary_factor": 0.5}, [DENSE] * 2, ENDS),
    "phi3": ({"original_max_position_embeddings": 256}, [DENSE] * 2, ENDS),
    "gpt2": (GPT2, [DENSE] * 2, ("embedding", "norm")),
    "gpt_neox": ({}, [DENSE] * 2, ENDS),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, [DENSE] * 2, ("embedding", "norm")),
    "bloom": ({"n_layer": 2, "n_head": 4}, [DENSE] * 2, ("embedding", "norm")),
    "falcon": (
        {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 48},
        [DENSE] * 2,
        ("embedding", "norm"),
    ),
    "olmo2": ({}, [DENSE] * 2, ENDS),
    "glm4": ({}, [DENSE] * 2, ENDS),
    "starcoder2": ({}, [DENSE] * 2, ("embedding", "norm")),
    "qwen3_5_text": (DELTA, [HYBRID, HYBRID, HYBRID, DENSE], ENDS),
    "qwen3_next": (
        DELTA | ROUTED | {"shared_expert_intermediate_size": 16},
        [("linear_attention", "router", *EXPERTS, "shared_expert")] * 3 + [SHARED],
        ENDS,
    ),
    "mixtral": ({"num_local_experts": 4}, [MIXTURE] * 2, ENDS),
    "qwen3_moe": (ROUTED, [MIXTURE] * 2, ENDS),
    "gpt_oss": ({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64}, [MIXTURE] * 2, ENDS),
    "deepseek_v3": (DEEPSEEK | LATENT | {"num_hidden_layers": 3}, [DENSE, SHARED, SHARED], ENDS),
    "glm4_moe": (DEEPSEEK | {"num_hidden_layers": 3}, [DENSE, SHARED, SHARED], ENDS),
    "llama4_text": (
        {
            "num_local_experts": 4,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 64,
        },
        [DENSE, SHARED],
        ENDS,
    ),
    "granitemoehybrid": (
        MAMBA
        | {
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
            "layer_types": ["mamba", "attention"] * 2,
        },
        [("mamba", "router", *EXPERTS, "shared_expert"), SHARED] * 2,
        ENDS,
    ),
    "nemotron_h": (
        {
            "num_hidden_layers": 4,
            "layers_block_type": None,
            "hybrid_override_pattern": "M-*E",
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        }
        | DEEPSEEK,
        [("mamba",), ("mlp",), ("attention",), ("router", *EXPERTS, "shared_expert")],
        ENDS,
    ),
    "falcon_h1": (
        MAMBA | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_expand": 1},
        [("mamba", "attention", "mlp")] * 2,
        ENDS,
    ),
    "lfm2": (
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention"] * 2,
            "block_auto_adjust_ff_dim": False,
        },
        [("conv", "mlp"), DENSE] * 2,
        ("embedding", "norm"),
    ),
    "jamba": (
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        [("mamba", "mlp"), MIXTURE] * 2,
        ENDS,
    ),
    "mamba2": (
        {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1, "chunk_size": 16, "expand": 2},
        [("mamba",)] * 2,
        ENDS,
    ),
    "recurrent_gemma": (
        {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 64},
        [("recurrent", "mlp")] * 2 + [DENSE],
        ("embedding", "norm"),
    ),
}
"""Each type's settings on top of ``SMALL``, the blocks of its layers, and the groups outside them."""

NOT_SMALL = {"gpt2", "bloom", "falcon"}
"""Types that name their sizes otherwise."""


def config_of(kind):
    """The configuration of a tiny model of a type."""
    common = {key: SMALL[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    if kind != "gpt2":
        common |= {"hidden_size": 32}
    return AutoConfig.for_model(kind, **((common if kind in NOT_SMALL else SMALL) | FAMILIES[kind][0]))


def build(kind, device="cpu", seed=0):
    """A tiny model of a type with random weights."""
    torch.manual_seed(seed)
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config_of(kind))


def groups_of(kind):
    """The names of the groups that ``module`` must give."""
    _, layers, outside = FAMILIES[kind]
    return {f"layers.{i}.{block}" for i, blocks in enumerate(layers) for block in blocks} | set(outside)


def vision_language():
    """A tiny Qwen2.5-VL, which transformers builds as no causal language model."""
    config = AutoConfig.for_model("qwen2_5_vl")
    sizes = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    for part, settings in ((config.text_config, SMALL), (config.vision_config, sizes)):
        for key, value in settings.items():
            setattr(part, key, value)
    config.text_config.layer_types = ["full_attention"] * 2
    config.text_config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config)
