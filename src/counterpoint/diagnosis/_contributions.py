"""How much every neuron and every attention head contributes on a domain's tokens: sums over batches, by hooks.

A neuron contributes ``|activation| * norm of its down column``; a head the norm of what its slice of the attention's
output becomes behind the output projection. Both are means over the positions that predict completion tokens: the
last prompt token and every completion token but the last, which predicts nothing. A domain's length does not count.

Legend: K halves of the prompts, N neurons of all layers, H heads of all layers, S selected positions of a batch, F
features, C channels of one head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from counterpoint.anatomy import Anatomy
from counterpoint.diagnosis.rollouts import Rollouts, TokenBatch, collate
from counterpoint.errors import CounterpointError, ModelError, UnsupportedError
from counterpoint.models import is_out_of_memory


@dataclass(frozen=True)
class Site:
    """One projection whose input is measured: ``units`` neurons or heads of ``layer`` arrive at its input."""

    layer: int
    kind: Literal["neuron", "head"]
    units: int
    module: Any


@dataclass(frozen=True)
class Sites:
    """Where neurons and heads arrive in a model; units are numbered through the layers in order.

    ``neuron_layers_N`` and ``head_layers_H`` [int64] tell each unit's layer; ``left_out`` are layers whose feed-forward
    block is, in whole or in part, of no known kind (experts): it has no neurons here. ``anatomy`` is the model's.
    """

    sites: tuple[Site, ...]
    neuron_layers_N: Tensor
    head_layers_H: Tensor
    left_out: tuple[int, ...]
    anatomy: Anatomy


@dataclass(frozen=True)
class Activity:
    """Sums of contributions by half of the prompts [float64] and the number of predicted tokens of each half."""

    neurons_KN: Tensor
    heads_KH: Tensor
    tokens_K: Tensor

    def mean(self, kind: str, half: int | None = None) -> Tensor:
        """Mean contribution per token of each ``neuron`` or ``head``, over all prompts or one half of them."""
        sums_KU = self.neurons_KN if kind == "neuron" else self.heads_KH
        chosen = slice(None) if half is None else slice(half, half + 1)
        return sums_KU[chosen].sum(0) / self.tokens_K[chosen].sum().clamp(min=1)


def sites_of(model: Any) -> Sites:
    """The projections of ``model`` that neurons and heads feed; refuses a model without an MLP of a known kind."""
    anatomy, num_heads = Anatomy.of(model), getattr(_config(model), "num_attention_heads", None)
    sites = []
    for name, module in model.named_modules():
        if not hasattr(getattr(module, "base_layer", module), "weight") or name.endswith(".base_layer"):
            continue
        axis, layer = anatomy.neuron_axis(f"{name}.weight"), anatomy.output_layer(f"{name}.weight")
        if axis and axis.part == "down":
            sites.append(Site(axis.layer, "neuron", _weight(module).shape[1], module))
        elif layer is not None and num_heads:
            if (features := _weight(module).shape[1]) % num_heads:
                raise UnsupportedError(
                    f"{name}: {features} inputs cannot be divided among the {num_heads} heads that the model's "
                    "configuration names, so heads cannot be told apart."
                )
            sites.append(Site(layer, "head", num_heads, module))
    dense = {site.layer for site in sites if site.kind == "neuron"}
    if not dense:
        raise UnsupportedError(
            f"{type(model).__name__} has no dense MLP whose shapes tell its neurons, so its routes cannot be measured. "
            "Edits and conflicts work on any model: counterpoint diagnose RUN --only edits,conflicts."
        )
    routed = {place.layer for place in anatomy.places.values() if "experts" in place.block.split(".")}
    left_out = (n for n in anatomy.layers if n not in dense or f"layers.{n}" in routed)
    sites.sort(key=lambda site: site.layer)
    return Sites(tuple(sites), _layers(sites, "neuron"), _layers(sites, "head"), tuple(left_out), anatomy)


def activity_of(
    model: Any,
    sites: Sites,
    rollouts: Rollouts,
    *,
    pad_id: int,
    batch_size: int = 32,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Activity:
    """What every unit contributes where tokens of ``rollouts`` are predicted, each half of the prompts by itself.

    Sums are kept, never activations. Refuses a contribution that is no number, and says if memory does not suffice.
    """
    sums = _Sums(sites)
    device = next(model.parameters()).device
    backbone = _backbone(model)
    with _measuring(model), sums.listening():
        for number, half in enumerate(rollouts.split()):
            longest_first = sorted(half.items, key=lambda item: -len(item.prompt_ids) - len(item.completion_ids))
            for low in range(0, len(half), batch_size):
                batch = collate(longest_first[low : low + batch_size], pad_id).to(device)
                sums.select(number, predicting(batch))
                try:
                    backbone(input_ids=batch.ids_BT, attention_mask=batch.attention_BT.long())
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    raise CounterpointError(
                        f"Memory does not suffice for {len(batch.ids_BT)} completions at once. Lower batch_size."
                    ) from error
                on_batch(len(batch.ids_BT))
    return sums.activity()


class _Sums:
    """Receives what arrives at every site and adds it to the current half."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites.sites
        self._maps = [_column_norms(site) if site.kind == "neuron" else _head_maps(site) for site in self._sites]
        self._sums = [
            torch.zeros(2, site.units, dtype=torch.float64, device=scale.device)
            for site, scale in zip(self._sites, self._maps, strict=True)
        ]
        self._tokens_K = torch.zeros(2, dtype=torch.float64)
        self._half = 0
        self._rows = torch.zeros(0, dtype=torch.long)

    def select(self, half: int, selected_BT: Tensor) -> None:
        self._half, self._rows = half, selected_BT.flatten().nonzero().squeeze(1)
        self._tokens_K[half] += len(self._rows)

    @contextmanager
    def listening(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for i, site in enumerate(self._sites):
                handles.append(site.module.register_forward_pre_hook(self._hook(i)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, i: int) -> Callable[..., None]:
        add = _neuron_sums if self._sites[i].kind == "neuron" else _head_sums

        def hear(module: Any, args: tuple[Tensor, ...]) -> None:
            x_SF = args[0].flatten(0, -2).index_select(0, self._rows.to(args[0].device))
            self._sums[i][self._half] += add(wide(x_SF), self._maps[i])

        return hear

    def activity(self) -> Activity:
        for site, sums in zip(self._sites, self._sums, strict=True):
            if not bool(sums.isfinite().all()):
                raise CounterpointError(
                    f"Layer {site.layer}: contributions of {site.kind}s are not finite numbers. The model overflows on "
                    "these completions; load it in float32 or bfloat16, and look for NaN in its weights."
                )
        return Activity(self._joined("neuron"), self._joined("head"), self._tokens_K)

    def _joined(self, kind: str) -> Tensor:
        parts = [s.cpu() for site, s in zip(self._sites, self._sums, strict=True) if site.kind == kind]
        return torch.cat(parts, 1) if parts else torch.zeros(len(self._tokens_K), 0, dtype=torch.float64)


def _neuron_sums(x_SN: Tensor, norms_N: Tensor) -> Tensor:
    return x_SN.abs().sum(0).double() * norms_N


def _head_sums(x_SF: Tensor, maps_HCC: Tensor) -> Tensor:
    """Sum over tokens of ``norm(W_h x_h)`` per head: that of ``R x_h`` with the triangular factor of ``W_h = Q R``."""
    x_SHC = x_SF.unflatten(-1, (len(maps_HCC), -1))
    return torch.einsum("hdc,shc->shd", maps_HCC, x_SHC).norm(dim=-1).sum(0).double()


def _column_norms(site: Site) -> Tensor:
    """Norm of what one unit of each neuron's activation writes into the residual stream: [N], float64."""
    return _weight(site.module).norm(dim=0).double()


def _head_maps(site: Site) -> Tensor:
    """Triangular factors of each head's columns of the output projection: [H, C, C]."""
    weight_MF = _weight(site.module)
    columns_HMC = weight_MF.unflatten(1, (site.units, -1)).permute(1, 0, 2)
    return torch.linalg.qr(columns_HMC, mode="r").R


def _weight(module: Any) -> Tensor:
    """The projection's effective weight [outputs, inputs], adapters included, in float32 or wider."""
    base = getattr(module, "base_layer", module)
    weight = wide(base.weight.detach())
    if base is not module and not module.merged:
        for adapter in module.active_adapters:
            if adapter in module.scaling:
                weight = weight + module.get_delta_weight(adapter).detach().to(weight)
    return weight.T if type(base).__name__ == "Conv1D" else weight  # of transformers: inputs first


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 where it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def predicting(batch: TokenBatch) -> Tensor:
    """The positions from which completion tokens are predicted, each one before its token: [B, T], bool."""
    return torch.nn.functional.pad(batch.completion_BT[:, 1:], (0, 1))


def _layers(sites: Sequence[Site], kind: str) -> Tensor:
    chosen = [site for site in sites if site.kind == kind]
    return torch.tensor([site.layer for site in chosen for _ in range(site.units)], dtype=torch.long)


def _config(model: Any) -> Any:
    try:
        return model.config.get_text_config()
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} has no configuration of transformers. Routes are measured on causal language "
            "models of transformers; give one of those."
        ) from None


def _backbone(model: Any) -> Any:
    """The model without its head: routes need no logits, which are the largest tensor of a forward pass."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(plain, "base_model", plain)


@contextmanager
def _measuring(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
