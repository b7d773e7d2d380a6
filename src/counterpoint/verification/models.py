"""The models the suite trains: a few thousand parameters with the names of a Llama, small enough to know by heart."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import plain_name


@dataclass(frozen=True)
class ModelSpec:
    """The sizes of a model, and what is unusual about it."""

    vocabulary: int = 23
    hidden: int = 16
    heads: int = 4
    intermediate: int = 24
    layers: int = 2
    experts: int = 0
    """Number of experts of every MLP, stored fused in 3-D parameters; 0 for a plain MLP."""
    tied: bool = False
    """One tensor for the embedding and the head."""
    lora: bool = False
    """Everything frozen but PEFT's adapters."""


class Norm(nn.Module):
    """Root mean square normalisation with a weight."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` normalised along its last dimension."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    """Causal attention without positions; the number of heads follows from the width, so that it can be sharded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.head_size = spec.hidden // spec.heads
        self.q_proj = nn.Linear(spec.hidden, spec.hidden, bias=False)
        self.k_proj = nn.Linear(spec.hidden, spec.hidden, bias=False)
        self.v_proj = nn.Linear(spec.hidden, spec.hidden, bias=False)
        self.o_proj = nn.Linear(spec.hidden, spec.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for hidden states [rows, tokens, hidden]."""
        tokens = x.shape[1]
        heads = [
            project(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        ]
        scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(self.head_size)
        future = torch.full((tokens, tokens), -1e4, dtype=scores.dtype, device=scores.device).triu(1)
        mixed = (scores + future).softmax(-1) @ heads[2]
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Gated MLP."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden, spec.intermediate, bias=False)
        self.up_proj = nn.Linear(spec.hidden, spec.intermediate, bias=False)
        self.down_proj = nn.Linear(spec.intermediate, spec.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for hidden states [rows, tokens, hidden]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """All experts of a mixture, each parameter [experts, ...]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(spec.experts, spec.hidden, 2 * spec.intermediate))
        self.down_proj = nn.Parameter(torch.empty(spec.experts, spec.intermediate, spec.hidden))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """The experts' outputs summed with ``shares`` [rows, tokens, experts]."""
        gate, up = torch.einsum("bth,ehi->btei", x, self.gate_up_proj).chunk(2, -1)
        return torch.einsum("btei,eih,bte->bth", functional.silu(gate) * up, self.down_proj, shares)


class Mixture(nn.Module):
    """A mixture of experts that sends every token to all of them, with a gate of one row that few ranks hold."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.hidden, spec.experts, bias=False)
        self.experts = Experts(spec)
        self.shared_expert = MLP(spec)
        self.shared_expert_gate = nn.Linear(spec.hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for hidden states [rows, tokens, hidden]."""
        return self.experts(x, self.gate(x).softmax(-1)) + self.shared_expert_gate(x).sigmoid() * self.shared_expert(x)


class Layer(nn.Module):
    """One layer: attention and MLP, each behind its norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = Norm(spec.hidden)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = Norm(spec.hidden)
        self.mlp = Mixture(spec) if spec.experts else MLP(spec)

    def forward(self, x: Tensor) -> Tensor:
        """The hidden states after this layer."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocabulary, spec.hidden)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))
        self.norm = Norm(spec.hidden)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """The last hidden states."""
        x = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LanguageModel(nn.Module):
    """Token numbers [rows, tokens] to logits [rows, tokens, vocabulary]."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = Body(spec)
        self.lm_head = nn.Linear(spec.hidden, spec.vocabulary, bias=False)
        if spec.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """The logits."""
        return self.lm_head(self.model(tokens_BT))


def build_model(spec: ModelSpec, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """The model of ``spec``, equal on every rank and, up to rounding, in every dtype; the global RNG is not used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = LanguageModel(spec)
        if spec.lora:
            model = _with_adapters(model)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(_initial(name, noise))
    return model.to(device=device, dtype=dtype)


def _initial(name: str, noise: Tensor) -> Tensor:
    """Norms near 1, and layers that change what passes through them a little: rounding errors then stay small."""
    if noise.ndim == 1:
        return 1 + 0.1 * noise
    return noise if "embed_tokens" in name else 0.5 * noise / math.sqrt(noise.shape[-1])


def _with_adapters(model: nn.Module) -> nn.Module:
    import peft

    targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))  # type: ignore[arg-type]


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters under the names they have in an unwrapped model."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The list of layers, with adapters or without."""
    return next(module.layers for module in model.modules() if isinstance(module, Body))
