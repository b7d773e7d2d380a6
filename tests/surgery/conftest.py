"""A menagerie of tiny models, a toy model with any gradient one wants, and PCGrad written out on full gradients."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from counterpoint.surgery import Surgeon

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


NAMES = ["alpha", "beta", "delta", "gamma", "zeta"]


class Loss(nn.Module):
    """A model whose gradient in a micro-batch is whatever the test wants it to be."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))

    def backward(self, gradients: dict[str, Tensor]) -> None:
        parameters = dict(self.named_parameters())
        sum((parameters[name] * gradient).sum() for name, gradient in gradients.items()).backward()


SHAPES = {"one": (5, 3), "two": (7,), "three": (2, 2, 2), "scalar": ()}


def random_gradients(shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def collect(surgeon: Surgeon, model: Loss, gradients_D: dict[str, dict[str, Tensor]]) -> None:
    for domain, gradients in gradients_D.items():
        model.backward(gradients)
        surgeon.collect(domain)


def domains(number: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, dict[str, Tensor]]:
    return {name: random_gradients(SHAPES, 100 * seed + d, dtype) for d, name in enumerate(NAMES[:number])}


def run(gradients_D: dict[str, dict[str, Tensor]], strategy: object = "pcgrad", **kwargs: object):
    model = Loss(SHAPES, next(iter(gradients_D.values()))["three"].dtype)
    surgeon = Surgeon(model, strategy, **kwargs)
    collect(surgeon, model, gradients_D)
    record = surgeon.combine()
    return {name: p.grad for name, p in model.named_parameters()}, record, surgeon


def flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].reshape(-1) for name in names])


@pytest.fixture(scope="session")
def toy() -> SimpleNamespace:
    """The toy model and what tests do with it: ``toy.run(toy.domains(3), "pcgrad")``."""
    return SimpleNamespace(
        SHAPES=SHAPES,
        Loss=Loss,
        collect=collect,
        domains=domains,
        flat=flat,
        random_gradients=random_gradients,
        run=run,
    )
