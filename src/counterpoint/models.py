"""Loads policies and tokenizers, and says plainly when a path is not one."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from counterpoint.config import ModelConfig
from counterpoint.errors import MissingExtraError, ModelError, first_line
from counterpoint.inputs import LIBRARY_FAULTS, MAX_LAYERS, kind_of, read_json, refuse_devices, refuse_pickles
from counterpoint.pocket import model_path

SMALL_MODEL = 20_000_000
"""Parameters below which one thread is faster: on two cores two threads took twice as long for the pocket model."""

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

MODEL_FAULTS: tuple[type[Exception], ...] = (*LIBRARY_FAULTS, SafetensorError, StrictDataclassError)
"""What transformers raises on files that are none of a model."""


def auto_class(config: Any) -> Any:
    """The class of transformers that builds a configuration's model: of a language model, also inside a vision-language
    model that has no other."""
    if type(config) in AutoModelForImageTextToText._model_mapping and not (
        type(config) in AutoModelForCausalLM._model_mapping or hasattr(config, "auto_map")
    ):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def meta_model(config: Any, kind: Any = None, trust_remote_code: bool = False) -> torch.nn.Module:
    """The model of a configuration on the meta device, names and shapes without memory: of class ``kind`` of
    transformers, which may be one of its ``Auto`` classes; by default that of :func:`auto_class`.

    Raises:
        ValueError: it has more layers than are built. Whatever else transformers finds is among ``MODEL_FAULTS``.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise ValueError(f"it has {layers} layers; at most {MAX_LAYERS} are built")
    with torch.device("meta"):
        if hasattr(kind, "_from_config"):
            return kind._from_config(config)
        return (kind or auto_class(config)).from_config(config, trust_remote_code=trust_remote_code)


def described_model(
    name: str,
    read_config: Callable[[], Any],
    choices: str,
    trust_remote_code: bool = False,
    kind: Any = None,
    what: str = "causal language model",
) -> Any:
    """The model on the meta device of the configuration that ``read_config`` reads; ``kind`` as for ``meta_model``.

    Raises:
        ModelError: there is no configuration of a ``what``; ``choices`` is what may be given instead.
    """
    refuse_devices(name, ModelError)
    try:
        return meta_model(read_config(), kind, trust_remote_code)
    except MODEL_FAULTS as error:
        reason = first_line(error).rstrip(".")
        raise ModelError(f"{name!r} is no {what} that transformers can build: {reason}. Give {choices}.") from error


def resolve_path(model: ModelConfig) -> str:
    """The folder or hub id behind ``model.path``; ``pocket`` is the embedded model.

    Raises:
        ModelError: there is no such folder, or it holds a device or a pipe.
    """
    is_hub_id = model.path.count("/") < 2 and not model.path.startswith(("/", ".", "~"))  # NAME or OWNER/NAME
    if not is_hub_id and not Path(model.path).exists():
        raise ModelError(f"{model.path}: there is no such folder. Give a checkpoint folder, a hub id, or `pocket`.")
    refuse_devices(model.path, ModelError)
    return str(model_path()) if model.path == "pocket" else model.path


def with_tokenizer(model: ModelConfig, otherwise: ModelConfig) -> ModelConfig:
    """Where the tokenizer of ``model`` is: a folder without one is read with that of ``otherwise``."""
    folder = Path(resolve_path(model))
    return otherwise if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZERS) else model


def load_tokenizer(model: ModelConfig) -> Any:
    """The model's tokenizer, padding on the left.

    Raises:
        ModelError: no tokenizer there.
    """
    path = resolve_path(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=model.revision, trust_remote_code=model.trust_remote_code, padding_side="left"
        )
    except Exception as error:
        if type(error) is not Exception and not isinstance(
            error, MODEL_FAULTS
        ):  # tokenizers has no error of its own kind
            raise
        raise ModelError(_not_a_model(path, "tokenizer", error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model.path {path}: the tokenizer has no end token, so completions would never end. Set one.")
    return tokenizer


def check_model(model: ModelConfig) -> int:
    """The number of the model's parameters, from its configuration alone, before any weight is loaded.

    Raises:
        ModelError: the path is not a causal language model.
    """
    return sum(param.numel() for param in skeleton(model).parameters())


def skeleton(model: ModelConfig) -> torch.nn.Module:
    """The model on the meta device: names and shapes without weights, and without adapters.

    Raises:
        ModelError: the path is not a causal language model.
    """
    folder = Path(resolve_path(model))
    path = _adapter_base(str(folder)) or str(folder)
    try:
        config = AutoConfig.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    except MODEL_FAULTS as error:
        raise ModelError(_not_a_model(path, "model configuration", error)) from error
    refuse_pickles(folder, f"model.path {folder}", ModelError)
    try:
        return meta_model(config, trust_remote_code=model.trust_remote_code)
    except MODEL_FAULTS as error:
        raise ModelError(_not_a_model(resolve_path(model), "causal language model", error)) from error


def with_adapters(model: ModelConfig, built: torch.nn.Module) -> torch.nn.Module:
    """A :func:`skeleton` with the adapters that are trained, where there are any.

    Raises:
        ModelError: the model has none of the modules that are to be adapted.
    """
    folder = resolve_path(model)
    try:
        if _adapter_base(folder) is not None:
            chosen = _import_peft().PeftConfig.from_pretrained(folder)
        elif (chosen := lora_config(model)) is None:
            return built
        chosen.inference_mode = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training gives them again
            adapted: torch.nn.Module = _import_peft().get_peft_model(built, chosen)
    except MODEL_FAULTS as error:
        raise ModelError(f"model.lora: PEFT cannot adapt {folder}: {error}") from error
    return adapted


def load_model(model: ModelConfig, start: Path | None = None) -> Any:
    """The policy as a module: from ``start`` (a checkpoint of this run) where given, else from ``model.path``.

    A folder with LoRA adapters is loaded on top of the model it names, its adapters trainable.

    Raises:
        ModelError: no model there, weights are missing or of another shape, or some are not finite.
    """
    path = str(start or resolve_path(model))
    base = _adapter_base(path)
    loaded = _from_pretrained(model, path if base is None else base)
    if base is not None:
        loaded = _import_peft().PeftModel.from_pretrained(loaded, path, is_trainable=True)
    _check_finite(path, loaded)
    return loaded


def _check_finite(path: str, model: Any) -> None:
    """Nothing can be sampled from weights that are no numbers; one pass over them tells it beforehand."""
    floats = {name: param.detach() for name, param in model.named_parameters() if param.is_floating_point()}
    bad = {}
    for name, weights in floats.items():
        if weights.dtype.itemsize == 1 or not weights.numel():  # torch cannot tell for 8 bits
            continue
        if not torch.stack(torch.aminmax(weights)).isfinite().all():
            bad[name] = int((~weights.isfinite()).sum())
    if bad:
        listed = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:3])
        raise ModelError(
            f"{path}: {sum(bad.values())} weights are NaN or infinite, in {len(bad)} of its tensors: {listed}"
            f"{' and others' if len(bad) > 3 else ''}. Nothing can be sampled from it; use a checkpoint from before "
            "the training diverged. `counterpoint diagnose --only edits` works on it and leaves these weights out."
        )


def _adapter_base(path: str) -> str | None:
    """The model that the adapters in folder ``path`` belong to; None where there are no adapters."""
    if not kind_of(Path(path) / ADAPTER_CONFIG):
        return None
    return str(read_adapter_config(Path(path))["base_model_name_or_path"])


class _AdapterConfig(BaseModel):
    """What is read of an adapter's configuration."""

    base_model_name_or_path: str = Field(min_length=1)
    revision: str | None = None
    peft_type: str = "LORA"
    lora_alpha: float = Field(default=8, allow_inf_nan=False)
    alpha_pattern: dict[str, FiniteFloat] | None = None


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The ``adapter_config.json`` of a folder.

    Raises:
        ModelError: it is no JSON object, names no base model, or scales by something else than numbers.
    """
    file = folder / ADAPTER_CONFIG
    config = read_json(file, ModelError, "configuration of adapters", "Save the adapters again.")
    try:
        _AdapterConfig.model_validate(config)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise ModelError(f"{file}: {wrong}. Correct it, or save the adapters again.") from error
    return config


def lora_config(model: ModelConfig) -> Any:
    """The ``peft.LoraConfig`` of the configuration, or None."""
    if model.lora is None:
        return None
    return _import_peft().LoraConfig(
        r=model.lora.r,
        lora_alpha=model.lora.alpha,
        lora_dropout=model.lora.dropout,
        target_modules=model.lora.target_modules,
        task_type="CAUSAL_LM",
    )


def _from_pretrained(model: ModelConfig, path: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
        found: Any = auto_class(config).from_pretrained(
            path,
            revision=model.revision,
            dtype=getattr(torch, model.dtype),
            attn_implementation=model.attn_implementation,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their names
        )
    except MODEL_FAULTS as error:
        raise ModelError(_not_a_model(path, "causal language model", error)) from error
    loaded, info = found
    _check_complete(path, info)
    return loaded


def _check_complete(path: str, info: Mapping[str, Any]) -> None:
    """Weights that a checkpoint lacks, or has in another shape, would be drawn at random."""
    wrong = [
        f"{name} has shape {list(found)} and not {list(wanted)}"
        for name, found, wanted in sorted(info.get("mismatched_keys", ()))
    ]
    wrong += [f"{name} is missing" for name in sorted(info.get("missing_keys", ()))]
    if wrong:
        more = f", and {len(wrong) - 3} more like these" if len(wrong) > 3 else ""
        raise ModelError(
            f"model.path {path}: the weights do not fit the config.json beside them: {', '.join(wrong[:3])}{more}. "
            "Copy or download the checkpoint again, or correct its config.json."
        )


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError.for_extra("model.lora", "peft") from error
    return peft


def _not_a_model(path: str, what: str, error: Exception) -> str:
    reason = first_line(error)
    return (
        f"model.path {path}: no {what} could be read ({reason}). Give a checkpoint folder that save_pretrained "
        "wrote, a hub id, or `pocket`."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host, by its type or its wording."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower()
    wordings = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(wording in said for wording in wordings)


@contextmanager
def threads_for(num_params: int) -> Iterator[None]:
    """One thread for a small model inside the context, as many as before for any other; put back afterwards."""
    before = torch.get_num_threads()
    if num_params < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
