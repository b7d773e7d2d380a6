"""A menagerie of tiny models of every supported architecture, and PCGrad written out on full gradients."""

import itertools
import warnings
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_local_experts": 3,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
    "decoder_sparse_step": 1,
}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "vocab_size": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ARCHITECTURES: dict[str, dict[str, int]] = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma": SMALL,
    "gemma2": SMALL,
    "gemma3_text": SMALL,
    "phi": SMALL,
    "phi3": SMALL,
    "gpt2": GPT2,
    "gpt_neox": SMALL,
    "olmo2": SMALL,
    "mixtral": SMALL | EXPERTS,
    "qwen2_moe": SMALL | EXPERTS,
    "qwen3_moe": SMALL | EXPERTS,
    "olmoe": SMALL | EXPERTS,
}


def make_model(architecture: str, **changes: object) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(ARCHITECTURES[architecture] | changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="session")
def build() -> Callable[..., nn.Module]:
    """``build(architecture, **config)``: a new tiny model."""
    return make_model


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def project_explicitly(gradients_D: Sequence[Tensor], orders: Sequence[Sequence[int]]) -> Tensor:
    """PCGrad on full vectors, word for word: ``orders[i]`` lists the others of domain i."""
    total = torch.zeros_like(gradients_D[0])
    for i, gradient in enumerate(gradients_D):
        projected = gradient.clone()
        for j in orders[i]:
            inner = projected @ gradients_D[j]
            square = gradients_D[j] @ gradients_D[j]
            if inner < 0 and square > 0:
                projected = projected - inner / square * gradients_D[j]
        total += projected
    return total


@pytest.fixture(scope="session")
def explicit_pcgrad() -> Callable[..., Tensor]:
    return project_explicitly


@pytest.fixture(scope="session")
def every_pcgrad() -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """``every_pcgrad(gradients_D)``: the sums PCGrad can give, over all random orders of each domain."""

    def all_sums(gradients_D: Sequence[Tensor]) -> list[Tensor]:
        domains = range(len(gradients_D))
        # A domain's projection depends on its own order alone, so all sums are sums over one choice per domain.
        choices = []
        for i in domains:
            orders = itertools.permutations([j for j in domains if j != i])
            choices.append([_one_projection(gradients_D, i, order) for order in orders])
        return [torch.stack(chosen).sum(0) for chosen in itertools.product(*choices)]

    return all_sums


def _one_projection(gradients_D: Sequence[Tensor], i: int, order: Sequence[int]) -> Tensor:
    alone = [order if d == i else () for d in range(len(gradients_D))]
    others = sum((g for d, g in enumerate(gradients_D) if d != i), torch.zeros_like(gradients_D[0]))
    return project_explicitly(gradients_D, alone) - others
