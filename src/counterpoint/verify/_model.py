"""What the suite trains: a few thousand parameters with the names of a Llama, and the rows it is trained on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..anatomy import plain_name

VOCABULARY, TOKENS, LAYERS = 23, 8, 2


@dataclass(frozen=True)
class ModelSpec:
    hidden: int = 16
    heads: int = 4
    intermediate: int = 24
    experts: int = 0
    """Experts of every MLP, fused in 3-D parameters; 0 for a plain MLP."""
    tied: bool = False
    lora: bool = False
    """Everything is frozen but PEFT's adapters."""


class Attention(nn.Module):
    """Causal attention without positions; the number of heads follows from the width, so that it can be sharded."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.head_size = spec.hidden // spec.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(spec.hidden, spec.hidden, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # written out: fused attention rounds in its own way on every device
        future = torch.full((x.shape[1], x.shape[1]), -1e4, dtype=q.dtype, device=q.device).triu(1)
        mixed = (q @ k.mT / math.sqrt(self.head_size) + future).softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden, spec.intermediate, bias=False)
        self.up_proj = nn.Linear(spec.hidden, spec.intermediate, bias=False)
        self.down_proj = nn.Linear(spec.intermediate, spec.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(nn.Module):
    """Every token goes to all experts; the gate of one row leaves most ranks without a part of it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.gate = nn.Linear(spec.hidden, spec.experts, bias=False)
        self.experts = nn.Module()
        self.experts.gate_up_proj = nn.Parameter(torch.empty(spec.experts, spec.hidden, 2 * spec.intermediate))
        self.experts.down_proj = nn.Parameter(torch.empty(spec.experts, spec.intermediate, spec.hidden))
        self.shared_expert_gate = nn.Linear(spec.hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("bth,ehi->btei", x, self.experts.gate_up_proj).chunk(2, -1)
        shares_BTE = self.gate(x).softmax(-1) * self.shared_expert_gate(x).sigmoid()
        return torch.einsum("btei,eih,bte->bth", functional.silu(gate) * up, self.experts.down_proj, shares_BTE)


class Layer(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(spec.hidden, eps=1e-6)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = nn.RMSNorm(spec.hidden, eps=1e-6)
        self.mlp = Mixture(spec) if spec.experts else MLP(spec)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, spec.hidden)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(spec.hidden, eps=1e-6)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LanguageModel(nn.Module):
    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = Body(spec)
        self.lm_head = nn.Linear(spec.hidden, VOCABULARY, bias=False)
        if spec.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.lm_head(self.model(tokens_BT))


def build_model(spec: ModelSpec, dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Module:
    """The model of ``spec``, equal on every rank and, up to rounding, in every dtype; the global RNG is not used."""
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = LanguageModel(spec)
        if spec.lora:
            import peft

            targets = ["q_proj", "o_proj", "up_proj", "down_proj"]
            model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if noise.ndim == 1:
            noise = 1 + 0.1 * noise
        elif "embed_tokens" not in name:  # layers change what passes through them a little: rounding errors stay small
            noise = 0.5 * noise / math.sqrt(noise.shape[-1])
        parameter.data.copy_(noise)
    return model.to(device=device, dtype=dtype)


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters under the names they have in an unwrapped model."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def language_model(model: nn.Module) -> LanguageModel:
    """What adapters and wrappers lie around."""
    return next(module for module in model.modules() if isinstance(module, LanguageModel))


def policy_loss(model: nn.Module, tokens_BT: Tensor, advantages_B: Tensor) -> Tensor:
    """The sum over rows of ``-advantage * mean log-probability of the row's next tokens``."""
    logits_BTV = model(tokens_BT[:, :-1])
    if logits_BTV.dtype != torch.float64:
        logits_BTV = logits_BTV.float()
    logs_BT = logits_BTV.log_softmax(-1).gather(-1, tokens_BT[:, 1:].unsqueeze(-1)).squeeze(-1)
    return -(advantages_B.to(logs_BT.dtype) * logs_BT.mean(-1)).sum()


Rows = tuple[Tensor, Tensor]
"""Tokens [rows, TOKENS + 1] and advantages [rows]."""


@dataclass(frozen=True)
class Plan:
    """How the rows that every domain has in a step, always the same ones, are dealt to ranks and micro-batches."""

    domains: int = 3
    micro_batches: int = 2
    """Per domain, step and rank, of two rows each."""
    uneven: bool = False
    """Micro-batches of 0 to 3 rows, and every other step lacks a domain."""
    own_ways: bool = False
    """Each rank has its own order of domains, its own number of micro-batches, and lacks a domain in some steps."""
    steps: int = 3
    shards: int = 1
    """Ranks with rows of their own; comes from the spread."""

    def names(self, step: int) -> list[str]:
        """The domains of a step, in the order every rank goes through them."""
        absent = step % self.domains if self.uneven and step % 2 and self.domains > 1 else None
        present = [f"domain-{d}" for d in range(self.domains) if d != absent]
        turn = step % len(present)
        return present[turn:] + present[:turn]

    def order(self, step: int, mine: Sequence[int]) -> list[str]:
        """The domains of a step in the order in which whoever has these ranks' rows goes through them."""
        names = self.names(step)
        if not self.own_ways or len(mine) > 1:
            return names
        turn = mine[0] % len(names)
        turned = (names[turn:] + names[:turn])[:: -1 if mine[0] % 3 else 1]
        return [name for name in turned if self._sizes(step, name, mine[0])]

    def num_rows(self, step: int, domain: str) -> int:
        return sum(sum(self._sizes(step, domain, shard)) for shard in range(self.shards))

    def micro(self, step: int, domain: str, mine: Sequence[int], device: torch.device | str = "cpu") -> list[Rows]:
        """The micro-batches that these ranks have of a domain in a step."""
        number, total = _number(domain), self.num_rows(step, domain)
        generator = torch.Generator().manual_seed(1000 * step + number)
        tokens_BT = torch.randint(VOCABULARY, (total, TOKENS + 1), generator=generator)
        # a domain's rows resemble each other: half of their tokens follow a rule of its own
        rule_BT = (tokens_BT[:, :1] + (number + 1) * torch.arange(TOKENS + 1)) % VOCABULARY
        keep_BT = torch.rand(total, TOKENS + 1, generator=generator) < 0.5
        rows = torch.where(keep_BT, rule_BT, tokens_BT).to(device), torch.randn(total, generator=generator).to(device)
        owner_M = [shard for shard in range(self.shards) for _ in self._sizes(step, domain, shard)]
        sizes_M = [size for shard in range(self.shards) for size in self._sizes(step, domain, shard)]
        pieces = zip(owner_M, *(part.split(sizes_M) for part in rows), strict=True)
        return [(tokens_BT, advantages_B) for owner, tokens_BT, advantages_B in pieces if owner in mine]

    def _sizes(self, step: int, domain: str, shard: int) -> list[int]:
        """Rows of every micro-batch of this rank."""
        number, micro = _number(domain), self.micro_batches
        if self.own_ways:
            if self.shards > 1 and (step + number + shard) % (2 * self.shards) == 0:
                return []
            micro = 1 + (micro + shard + step) % (micro + 1)
        if not self.uneven:
            return [2] * micro
        least = 1 if self.own_ways or shard == 0 else 0  # some rank always has a row
        return [max(least, (shard + 2 * i + number + step) % 4) for i in range(micro)]


def _number(domain: str) -> int:
    return int(domain.rpartition("-")[2])
