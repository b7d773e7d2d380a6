"""LoRA adapters merged while a checkpoint is read: ``W + scaling * B @ A``, some rows of one tensor at a time.

Merged in float32, so the edit is that of the adapters and not that of rounding the sum to the base's type.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.anatomy import plain_name
from counterpoint.checkpoints.files import Stored, read_header
from counterpoint.errors import ModelError
from counterpoint.inputs import kind_of, reading

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(r"^(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.default)?(?:\.weight)?$")
_KEEPS_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Ways of initialising that leave the base's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA take out of them
what the factors start with, so that the model is not ``W + scaling * B @ A`` of the ``W`` on the disk."""

_EXACT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "inference_mode"),  # what it is
    *("base_model_name_or_path", "revision"),  # of which model
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out"),  # followed here
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the factors themselves say where
    *("bias", "modules_to_save"),  # saved whole
    *("lora_dropout", "init_lora_weights", "eva_config"),  # of training alone; the initialisation is checked apart
    *("megatron_core", "qalora_group_size"),  # of settings that are refused
}
"""Settings of PEFT's ``LoraConfig`` that may have any value: merged as here they give what PEFT merges. Every other
one, of a later PEFT too, has to be off."""


@dataclass(frozen=True)
class _Pair:
    """The factors of one weight: ``B`` [rows, r] times ``A`` [r, columns], or the transpose where ``turned``."""

    a: Tensor
    b: Tensor
    scaling: float
    turned: bool

    def rows(self, start: int, stop: int) -> Tensor:
        if self.turned:
            return self.a.t()[start:stop] @ (self.b.t() * self.scaling)
        return self.b[start:stop] @ (self.a * self.scaling)


@dataclass(frozen=True)
class Adapters:
    """The changes that an adapter folder makes to its base."""

    pairs: Mapping[str, _Pair]
    replaced: Mapping[str, Stored]
    """Tensors that the adapters' file holds whole (``modules_to_save``, trained biases)."""
    heads: tuple[str, ...]
    """Output projections among them: a base that ties them is tied no longer."""

    @property
    def changed(self) -> dict[str, torch.dtype]:
        """Type after merging, of every tensor that has factors."""
        return dict.fromkeys(self.pairs, torch.float32)

    def merge(self, name: str, rows: Tensor, start: int) -> Tensor:
        """The rows of tensor ``name`` from ``start`` on with its adapters; as they are where it has none."""
        pair = self.pairs.get(name)
        return rows.float().add_(pair.rows(start, start + len(rows))) if pair else rows


def read_adapters(
    folder: Path, config: Mapping[str, Any], base: Mapping[str, torch.dtype], shapes: Mapping[str, tuple[int, ...]]
) -> Adapters:
    """The adapters of a folder for a base with these types and shapes; the small factors are read whole.

    Raises:
        ModelError: not LoRA, a variant that cannot be merged exactly, or factors that do not fit the base.
    """
    _refuse_variants(folder, config)
    file = folder / ADAPTER_WEIGHTS
    if not kind_of(file):
        raise ModelError(
            f"{folder}: no {ADAPTER_WEIGHTS} beside adapter_config.json. Pickled adapters are not read; load them with "
            "PEFT where you trust them and save_pretrained again."
        )
    factors: dict[str, dict[str, Tensor]] = {}
    replaced: dict[str, Stored] = {}
    for key, stored in read_header(file).items():
        if match := _FACTOR.match(key):
            factors.setdefault(_plain(match[1]), {})[match[2]] = stored.read().float()
        elif ".lora_" in key:
            raise ModelError(f"{folder}: {key} is no factor of plain LoRA, and is not merged. {_remedy()}")
        else:
            replaced[_plain(key)] = stored
    pairs = {f"{module}.weight": _pair(folder, module, found, config) for module, found in factors.items()}
    _check_fit(folder, pairs, replaced, shapes)
    heads = tuple(name for name in replaced if name not in base)
    return Adapters(pairs, replaced, heads)


def _plain(key: str) -> str:
    return plain_name(key).replace(".modules_to_save.default", "").replace(".base_layer", "")


def _refuse_variants(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise ModelError(f"{folder}: adapters of the type {kind} are not merged, only LoRA. {_remedy()}")
    start = config.get("init_lora_weights")
    if (start.lower() if isinstance(start, str) else start) not in _KEEPS_THE_BASE:
        raise ModelError(
            f"{folder}: adapters with init_lora_weights {start!r:.60} are not merged, because it is not known to leave "
            f"the base's weights as they are on the disk. {_remedy()} For PiSSA and OLoRA, save_pretrained with "
            "path_initial_model_for_weight_conversion writes plain adapters too."
        )
    for key, value in config.items():
        if value and key not in _EXACT:
            raise ModelError(
                f"{folder}: adapters with {key} {value!r:.60} are not merged: what they add to the base's weights may "
                f"not be their factors' product. {_remedy()}"
            )


def _remedy() -> str:
    return "Merge them with PEFT's merge_and_unload and save_pretrained, and give that folder."


def _pair(folder: Path, module: str, found: Mapping[str, Tensor], config: Mapping[str, Any]) -> _Pair:
    embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if set(names) != set(found):
        raise ModelError(f"{folder}: {module} has {', '.join(sorted(found))} alone. Save the adapters again.")
    a, b = found[names[0]], found[names[1]]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not len(a):
        raise ModelError(
            f"{folder}: the factors of {module} are {list(a.shape)} and {list(b.shape)}; only pairs [r, in] and "
            f"[out, r] are merged. {_remedy()}"
        )
    return _Pair(a, b, _scaling(module, a.shape[0], config), embedding or bool(config.get("fan_in_fan_out")))


def _scaling(module: str, r: int, config: Mapping[str, Any]) -> float:
    """``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA; patterns match the end of the module's name, as in PEFT."""
    alpha = config.get("lora_alpha", 8)
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        where = f"adapter_config.json: the alpha_pattern {pattern!r:.60}"
        if "(" in pattern or sum(map(pattern.count, "*+{")) > 2:  # groups that repeat can match for ever
            raise ModelError(f"{where} is not read: only names and up to two repeats are. {_remedy()}")
        with reading(where, ModelError, _remedy(), also=(re.error,)):
            matched = re.match(rf"(.*\.)?({pattern})$", module)
        if matched:
            alpha = own
            break
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _check_fit(
    folder: Path, pairs: Mapping[str, _Pair], replaced: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    sizes = {name: tuple(_turn((len(p.b), p.a.shape[1]), p.turned)) for name, p in pairs.items()}
    sizes |= {name: stored.shape for name, stored in replaced.items()}
    for name, size in sizes.items():
        if name not in shapes and name not in replaced:
            raise ModelError(
                f"{folder}: the adapters change {name}, which the base model does not have. "
                "Correct base_model_name_or_path in adapter_config.json."
            )
        if shapes.get(name, size) != size:
            raise ModelError(
                f"{folder}: the adapters change {name} as a tensor of shape {list(size)}, and in the base model it is "
                f"{list(shapes[name])}. Correct base_model_name_or_path in adapter_config.json."
            )


def _turn(size: tuple[int, int], turned: bool) -> tuple[int, int]:
    return (size[1], size[0]) if turned else size
