"""Values under ``training``: by the annotations of TRL's own fields, by ranges and choices, and by building the parts.

TRL and transformers check few of them, and most fail after the model is loaded.
"""

import dataclasses
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from accelerate.utils import TorchDynamoPlugin
from pydantic import Field, TypeAdapter, ValidationError
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, Trainer, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.integrations.integration_utils import is_flytekit_available
from trl import GRPOConfig
from trl.import_utils import is_liger_kernel_available, is_vllm_available

from counterpoint.config.training_keys import unknown_setting
from counterpoint.errors import ConfigError
from counterpoint.inputs import LIBRARY_FAULTS
from counterpoint.masking import masked_data
from counterpoint.training.config import DomainGRPOConfig

_COUNT, _POSITIVE, _NOT_NEGATIVE = Field(ge=1, le=1_000_000), Field(gt=0), Field(ge=0)
_FRACTION, _SOME, _BELOW_ONE = Field(ge=0, le=1), Field(gt=0, le=1), Field(ge=0, lt=1)

_RANGES = (
    (Field(ge=-1, le=1_000_000_000), "max_steps"),
    (Field(ge=2, le=1_000_000), "num_generations"),
    (
        _COUNT,
        "per_device_train_batch_size gradient_accumulation_steps steps_per_generation generation_batch_size "
        "num_iterations max_completion_length ref_model_sync_steps num_generations_eval dataloader_prefetch_factor "
        "torch_empty_cache_steps vllm_tensor_parallel_size vllm_max_model_length ddp_bucket_cap_mb ddp_timeout "
        "pad_to_multiple_of",
    ),
    (
        _POSITIVE,
        "temperature num_train_epochs repetition_penalty delta sapo_temperature_neg sapo_temperature_pos "
        "vllm_server_timeout",
    ),
    (
        _NOT_NEGATIVE,
        "learning_rate weight_decay adam_epsilon warmup_steps max_grad_norm beta epsilon epsilon_high top_k "
        "dataloader_num_workers max_tool_calling_iterations router_aux_loss_coef num_completions_to_print",
    ),
    (_FRACTION, "min_p ref_model_mixup_alpha top_entropy_quantile label_smoothing_factor"),
    (_SOME, "top_p vllm_gpu_memory_utilization"),
    (_BELOW_ONE, "adam_beta1 adam_beta2"),
    (Field(ge=1, le=65535), "vllm_server_port vllm_group_port"),
)
_LIMITS = {key: limit for limit, keys in _RANGES for key in keys.split()}

CHOICES: dict[str, tuple[str | bool, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
}
"""Settings that TRL takes for text and whose other values it refuses, or passes over in silence, in the first step."""

_INFINITE = ("max_grad_norm",)
"""Numbers that may be infinite."""


def setting_names() -> set[str]:
    """Names of all settings of the installed ``trl.GRPOConfig``."""
    return set(_fields())


def setting_findings(training: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and message of every setting that TRL does not have, and of every value that is none of its setting."""
    for key, value in training.items():
        if key not in _fields():
            yield key, unknown_setting(key, _fields())
        elif reason := _wrong(key, value):
            yield key, reason


class RunSettings(DomainGRPOConfig):
    """Settings that go to trackers and into ``training_args.bin`` without what came from the environment."""

    def to_dict(self) -> dict[str, Any]:
        """The settings as trackers get them."""
        shown: dict[str, Any] = masked_data(super().to_dict())
        return shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, ...]:
        return object.__new__, (DomainGRPOConfig,), masked_data(self.__getstate__())


def build_config(settings: Mapping[str, Any], training: Mapping[str, Any], *, rehearse: bool) -> DomainGRPOConfig:
    """The ``DomainGRPOConfig`` of our own ``settings`` and the user's ``training``.

    Args:
        settings: what counterpoint sets; ``training`` is written over it.
        training: the keys of the user, each checked by ``setting_findings``.
        rehearse: also build what training makes of the settings alone: optimizer, schedule, generation, reports.

    Raises:
        ConfigError: something that a library refuses, named by the key without which it would not.
    """

    def build(chosen: Mapping[str, Any]) -> DomainGRPOConfig:
        # as its setting's type: generation refuses a temperature of 1 that is no float
        typed = {key: _adapter(key).validate_python(value, strict=True) for key, value in chosen.items()}
        args = RunSettings(**{**settings, **typed})
        if rehearse:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # training gives them again
                _rehearse(args)
        return args

    try:
        return build(training)
    except LIBRARY_FAULTS as error:
        key = _culprit(build, training)
        where = f"training.{key}" if key else "training"
        raise ConfigError(f"{where}: TRL cannot use these settings: {error}") from error


def _culprit(build: Callable[[Mapping[str, Any]], object], training: Mapping[str, Any]) -> str | None:
    """The first key without which the settings can be built."""
    for key in training:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                build({other: value for other, value in training.items() if other != key})
            return key
        except LIBRARY_FAULTS:
            continue
    return None


def _rehearse(args: Any) -> None:
    """Builds the parts of training that hang on settings alone, of one parameter and without a model."""
    _check_installed(args)
    if args.sync_ref_model and args.beta == 0.0:
        raise ValueError("sync_ref_model needs the reference model that only a beta above 0 makes")
    _rehearse_optimizer(args)
    if args.gradient_checkpointing and args.gradient_checkpointing_kwargs:
        checkpoint(torch.neg, torch.zeros(1, requires_grad=True), **args.gradient_checkpointing_kwargs)
    if not args.use_vllm:
        _check_generation(args)


def _rehearse_optimizer(args: Any) -> None:
    if "lomo" in args.optim or args.optim.endswith("_layerwise"):
        raise ValueError("it takes its steps inside backward, before the domains' gradients are combined")
    model: Any = torch.nn.ParameterList([torch.zeros(1)])
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    except ValueError:
        if args.optim_target_modules is None:
            raise
        return  # the modules that it is for are not in this model
    optimizer = kind(model.parameters(), **options)
    steps = args.max_steps if args.max_steps > 0 else 1000
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs
    )
    optimizer.step()
    schedule.step()


def _check_generation(args: Any) -> None:
    chosen = args.generation_kwargs or {}
    if unknown := set(chosen) - set(vars(GenerationConfig())):
        raise ValueError(f"generation has no setting {', '.join(sorted(unknown))}")
    if chosen.get("stop_strings"):
        raise ValueError("stop_strings need the tokenizer, which TRL does not give to generation")
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "cache_implementation")
    given = {name: getattr(args, name) for name in names} | chosen
    GenerationConfig(do_sample=True, max_new_tokens=args.max_completion_length, **given).validate(strict=True)


def _check_installed(args: Any) -> None:
    if args.use_vllm and not is_vllm_available():
        raise ImportError("vLLM is not installed. Install it with: pip install 'trl[vllm]'")
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("liger-kernel is not installed. Install it with: pip install liger-kernel")
    if args.torch_compile:
        TorchDynamoPlugin(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    get_reporting_integration_callbacks(args.report_to)
    for name in args.report_to:
        known = is_flytekit_available() if name == "flyte" else name in get_available_reporting_integrations()
        if not known:
            raise ImportError(f"{name} is not installed")


def _wrong(key: str, value: Any) -> str | None:
    """Why ``value`` is none of the setting ``key``."""
    try:
        _adapter(key).validate_python(value, strict=True)
    except ValidationError as error:
        found = repr(value)
        rules = dict.fromkeys(e["msg"].removeprefix("Input ") for e in error.errors(include_url=False))
        return f"{' or '.join(rules)}, found {found if len(found) <= 80 else f'{found[:80]}...'}."
    return None


@cache
def _fields() -> dict[str, Any]:
    """Name -> field of ``trl.GRPOConfig``."""
    return {field.name: field for field in dataclasses.fields(GRPOConfig) if field.init}


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    """What checks the values of one setting: its annotation, narrowed by the tables above."""
    hint = get_type_hints(GRPOConfig)[key]
    choices = CHOICES.get(key, tuple(_fields()[key].metadata.get("choices") or ()))
    if choices:
        allowed: Any = Literal[choices]
        return TypeAdapter(allowed | None if _fields()[key].default is None else allowed)
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if key == "fsdp":  # its help says that it may also be true
        parts = (bool, *parts)
    narrowed = tuple(_narrowed(key, part) if part in (int, float) else part for part in parts)
    either: Any = Union[narrowed]  # noqa: UP007 - the parts are known only here
    return TypeAdapter(either)


def _narrowed(key: str, kind: Any) -> Any:
    limited = Annotated[kind, _LIMITS[key]] if key in _LIMITS else kind
    return Annotated[limited, Field(allow_inf_nan=False)] if kind is float and key not in _INFINITE else limited
