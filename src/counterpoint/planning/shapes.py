"""The shapes of a model's parameters, from its configuration alone: no weights are read, none are allocated."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..anatomy import Anatomy
from ..errors import MissingExtraError, ModelError
from ..inputs import kind_of, refuse_devices

Shape = tuple[int, ...]

BUILT_IN: dict[str, dict[str, Any]] = {
    "0.5B": {
        "label": "Qwen2.5-0.5B",
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "8B": {
        "label": "Llama-3.1-8B",
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "70B": {
        "label": "Llama-3.1-70B",
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
"""Well-known shapes, so that planning needs neither a download nor a network."""


@dataclass(frozen=True)
class Lora:
    """LoRA adapters to plan for: their rank, and the modules they adapt (None: what PEFT chooses)."""

    r: int
    target_modules: str | list[str] | None = None


@dataclass(frozen=True)
class ModelShapes:
    """The parameters of a model by name, in model order, a tied parameter once."""

    label: str
    trained: Mapping[str, Shape]
    """Parameters that are trained: all of them, or the adapters of LoRA."""
    frozen: Mapping[str, Shape]
    anatomy: Anatomy | None = None

    @property
    def num_trained(self) -> int:
        """Number of trained weights."""
        return count(self.trained)

    @property
    def num_frozen(self) -> int:
        """Number of frozen weights."""
        return count(self.frozen)


def count(shapes: Mapping[str, Shape]) -> int:
    """Number of elements of all shapes together."""
    return sum(math.prod(shape) for shape in shapes.values())


def model_shapes(
    model: str,
    lora: Lora | None = None,
    *,
    label: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> ModelShapes:
    """The shapes of ``model``: a name in ``BUILT_IN``, a checkpoint folder, a ``config.json``, or a hub id.

    ``label`` is what people call it, the folder's name or the id where not given.

    Raises:
        ModelError: there is no configuration of a causal language model.
        MissingExtraError: ``lora`` is asked for and PEFT is not installed.
    """
    from transformers import AutoConfig

    def read_config() -> Any:
        if model not in BUILT_IN:
            return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=trust_remote_code)
        settings = {key: value for key, value in BUILT_IN[model].items() if key not in ("label", "model_type")}
        return AutoConfig.for_model(BUILT_IN[model]["model_type"], **settings)

    label = label or (BUILT_IN[model]["label"] if model in BUILT_IN else _label(model))
    choices = (
        f"{', '.join(BUILT_IN)}, 'pocket', a folder with a config.json, that file, a hub id, or a configuration in YAML"
    )
    built = described_model(model, read_config, choices, trust_remote_code)
    return _shapes_of(_with_lora(built, lora) if lora else built, label)


def described_model(name: str, read_config: Callable[[], Any], choices: str, trust_remote_code: bool = False) -> Any:
    """The model of a configuration on the meta device: names and shapes without memory.

    Raises:
        ModelError: there is no configuration of a causal language model; ``choices`` is what may be given instead.
    """
    from ..models import MODEL_FAULTS, meta_model

    refuse_devices(name, ModelError)
    try:
        return meta_model(read_config(), trust_remote_code=trust_remote_code)
    except MODEL_FAULTS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"{name!r} is no causal language model that transformers can build: {reason}. Give {choices}."
        ) from error


def _label(model: str) -> str:
    path = Path(model)
    return (
        path.parent.name if path.name == "config.json" and path.parent.name else path.name if kind_of(path) else model
    )


def _shapes_of(model: Any, label: str) -> ModelShapes:
    named = dict(model.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    return ModelShapes(
        label,
        {name: shape for name, shape in shapes.items() if named[name].requires_grad},
        {name: shape for name, shape in shapes.items() if not named[name].requires_grad},
        Anatomy.of(model),
    )


def _with_lora(model: Any, lora: Lora) -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError.for_extra("LoRA", "peft") from error
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=lora.r, target_modules=lora.target_modules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about initialisation, of which there is none on the meta device
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(
            f"PEFT cannot adapt this model: {error} Name the modules: --lora-targets all-linear."
        ) from error
