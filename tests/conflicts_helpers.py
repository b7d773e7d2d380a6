"""Gradients whose truth is known: a conflict planted in one module, nothing anywhere else."""

import hashlib
import math

import torch

from counterpoint.anatomy import Anatomy

MLP = ("gate_proj", "up_proj", "down_proj")


def shapes(layers=4, hidden=6, neurons=8):
    found = {}
    for layer in range(layers):
        found[f"model.layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
        found[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
        for part in MLP:
            shape = (hidden, neurons) if part == "down_proj" else (neurons, hidden)
            found[f"model.layers.{layer}.mlp.{part}.weight"] = shape
    return found


class Planted:
    """Orthogonal true gradients of unit norm in every parameter, but for one module and the first two domains.

    There their cosine is ``cosine`` in every parameter. ``noise`` is the norm of a batch's noise in a parameter;
    ``heavy`` makes batches differ in scale by about that factor, as prompts do.
    """

    def __init__(self, domains=3, batches=16, noise=3.0, cosine=-0.5, where="layers.1.mlp", heavy=0.5, seed=0, **sizes):
        self.domains = ("code", "math", "qa", "writing")[:domains]
        self.num_batches = batches
        self.shapes = shapes(**sizes)
        self.anatomy = Anatomy.of({"model.embed_tokens.weight": (10, sizes.get("hidden", 6))} | self.shapes)
        self.noise, self.heavy, self.seed = noise, heavy, seed
        self.calls = []
        self.signal = {}
        for name, shape in self.shapes.items():
            axes = torch.linalg.qr(torch.randn(math.prod(shape), domains, generator=self._stream(name)).double())[0].T
            if where and where in name:
                axes[1] = cosine * axes[0] + math.sqrt(1 - cosine**2) * axes[1]
            self.signal[name] = axes.reshape(domains, *shape)

    def _stream(self, *key):
        digest = hashlib.blake2b(repr((self.seed, *key)).encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)

    def gradients(self, domain, batch, names):
        self.calls.append((domain, batch, tuple(names)))
        scale = math.exp(self.heavy * torch.randn(1, generator=self._stream(domain, batch)).item())
        found = {}
        for name in names:
            noise = torch.randn(self.shapes[name], generator=self._stream(domain, batch, name)).double()
            found[name] = scale * (self.signal[name][domain] + noise * self.noise / math.sqrt(noise.numel()))
        return found


class SameDomain(Planted):
    """Every domain has the first one's true gradient."""

    def __init__(self, **settings):
        super().__init__(where=None, **settings)
        self.signal = {name: signal[:1].expand_as(signal) for name, signal in self.signal.items()}
