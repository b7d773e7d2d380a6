"""Which settings and back ends are exact, and how the ranks of one average gradients.

Settings and back ends under which a domain's gradient would not be exact are refused before training, here and in
``counterpoint.surgery`` for what a Surgeon can see of a model.

Averaging costs a collective over all parameters, so each domain is averaged once per optimizer step where the back end
allows it. DDP is kept from averaging at all (``no_sync``) and the Surgeon averages each domain when it combines them;
FSDP2 averages in the backward pass that ends a domain's stretch of micro-batches.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from counterpoint.anatomy import parameters_of
from counterpoint.errors import UnsupportedError
from counterpoint.surgery import Strategy, group_parameters
from counterpoint.surgery.refusals import DEEPSPEED, FSDP1

_DDP = {kind for kind in DistributedType if kind.value.startswith("MULTI_")}
"""What accelerate calls DDP on each kind of device."""

_UNPROVEN = "{}: domain gradients were never shown to be exact on this back end."


PROVEN: dict[str, tuple[str, ...]] = {
    "loss_type": ("dapo", "grpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "scale_rewards": ("group", "none", "batch"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}
"""Settings and their values under which ``mixed`` is TRL's own gradient; a test walks this list."""

_REASONS = {
    ("loss_type", "bnpo"): "divides by the tokens of each micro-batch, so a domain's loss would depend on how rows are "
    "cut into micro-batches",
}

_STEPS_IN_BACKWARD = ("lomo", "layerwise")
"""Parts of the names of transformers' optimizers that step inside backward, before gradients could be combined."""


def check_args(args: Any) -> None:
    """Refuses settings of a ``trl.GRPOConfig`` under which domain gradients would not be exact.

    Raises:
        UnsupportedError: naming the setting, why it cannot be exact, and what to use instead.
    """
    for key, proven in PROVEN.items():
        value = getattr(args, key)
        if value not in proven:
            reason = _REASONS.get((key, value), "was never shown to give TRL's own gradient when domains are mixed")
            raise UnsupportedError(f"{key}={value!r} {reason}. Use one of {', '.join(map(repr, proven))}.")
    if args.top_entropy_quantile < 1.0:
        raise UnsupportedError(
            f"top_entropy_quantile={args.top_entropy_quantile} takes its threshold from each micro-batch, which would "
            "be another one for every domain. Use top_entropy_quantile=1.0."
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if any(part in optimizer for part in _STEPS_IN_BACKWARD):
        raise UnsupportedError(
            f"optim={optimizer!r} steps inside backward, before the domains' gradients could be combined. Use an "
            "optimizer that steps once, such as adamw_torch or adafactor."
        )
    for key in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, key, None):
            raise UnsupportedError(
                f"accelerator_config.{key}=True changes which rows a rank gets, so ranks would work on different "
                f"domains at one time. Use {key}=False."
            )
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        warnings.warn(
            "entropy_coef averages over each micro-batch's tokens, so with micro-batches of one domain the bonus is "
            "not TRL's: 3e-3 of the gradient's norm was measured at a coefficient of 0.01.",
            UserWarning,
            stacklevel=3,
        )


def balancing_loss(coefficient: float, asked: float | None) -> tuple[float, str]:
    """The coefficient of a mixture's balancing loss to train with, and what to say of it.

    TRL adds that loss by default. It depends on which rows share a micro-batch, and is no sum over rows, so that with
    micro-batches of one domain it is another loss; here it must be asked for.

    Args:
        coefficient: TRL's own, from the configuration of the model if not from the user.
        asked: ``router_aux_loss_coef`` of the user.
    """
    if asked is not None:
        message = f"router_aux_loss_coef={asked}: each domain balances its experts for itself, unlike in TRL."
        return asked, message
    return 0.0, (
        f"This mixture of experts has router_aux_loss_coef={coefficient}. Its balancing loss depends on which rows "
        "share a micro-batch, and here each holds one domain, so it is left out. Set router_aux_loss_coef="
        f"{coefficient} to have each domain balance its experts for itself."
    )


def check_peft(peft_config: Any) -> None:
    """Refuses adapters without a gradient of their own in each module.

    Raises:
        UnsupportedError: naming the kind.
    """
    if getattr(peft_config, "is_prompt_learning", False):
        raise UnsupportedError(
            f"peft_config: {type(peft_config).__name__} trains tokens in front of the prompt, which are part of no "
            "module and which TRL's log-probabilities leave out. Use LoRA or another adapter of weights."
        )


def check_model(model: nn.Module, strategy: Strategy) -> None:
    """Refuses a model that the strategy cannot work on, as soon as there is one.

    Raises:
        UnsupportedError: its back end or its adapters.
        GroupingError: a trainable parameter that the strategy's grouping has no group for.
    """
    for config in getattr(model, "peft_config", {}).values():
        check_peft(config)
    if strategy.weighting == "ones":
        return
    if getattr(model, "is_distributed_loading_by_transformers", False):
        raise UnsupportedError(f"{_UNPROVEN.format('A model sharded by from_pretrained')} Use DDP or FSDP2.")
    group_parameters(model, strategy.grouping)


def check_devices(args: Any) -> None:
    """Refuses one process that sees several GPUs, of which transformers would make ``torch.nn.DataParallel``.

    Raises:
        UnsupportedError: saying how to start one process per GPU.
    """
    if args.n_gpu > 1:
        raise UnsupportedError(
            f"One process sees {args.n_gpu} GPUs, and torch.nn.DataParallel would split micro-batches between copies "
            "of the model. Start one process per GPU: accelerate launch --num_processes "
            f"{args.n_gpu} -m counterpoint train CONFIG, or make one visible with CUDA_VISIBLE_DEVICES=0."
        )


def check_accelerator(accelerator: Any, *, surgery: bool) -> None:
    """Refuses back ends that give no exact gradient per domain and module before the optimizer's step.

    Args:
        accelerator: an ``accelerate.Accelerator``.
        surgery: whether the strategy alters gradients; plain mixing works on every back end that TRL supports.

    Raises:
        UnsupportedError: naming the back end and what to use instead.
    """
    if not surgery:
        return
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UnsupportedError(f"{DEEPSPEED} Or use strategy='mixed'.")
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UnsupportedError(f"{FSDP1} Or use strategy='mixed'.")
    if not separable(accelerator):
        raise UnsupportedError(f"{_UNPROVEN.format(accelerator.distributed_type.value)} Use DDP or FSDP2.")
    if tensor_parallel(accelerator):
        raise UnsupportedError(
            "Tensor parallelism: TRL gives every rank prompts and random numbers of its own, and the ranks that share "
            "a model's tensors must agree on both. Use FSDP2 (fsdp_version: 2), or Surgeon in a loop of your own."
        )


def check_checkpoints(accelerator: Any) -> None:
    """Refuses settings under which a checkpoint would not be a model folder.

    Raises:
        UnsupportedError: naming the setting of accelerate to change.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    kind = accelerator.state.fsdp_plugin.state_dict_type
    if "FULL_STATE_DICT" not in str(kind):
        raise UnsupportedError(
            "fsdp_state_dict_type writes checkpoints in shards, which evaluation and diagnosis cannot read. "
            f"Use fsdp_state_dict_type: FULL_STATE_DICT in accelerate's configuration (found {kind})."
        )


def tensor_parallel(accelerator: Any) -> bool:
    """Whether tensors of the model are split over ranks that compute together."""
    parallel = getattr(accelerator, "parallelism_config", None)
    return parallel is not None and parallel.tp_enabled


def all_finite(model: Any, accelerator: Any) -> bool:
    """Whether all trained parameters are numbers, on all ranks; they ask together."""
    parts = (getattr(param, "_local_tensor", param) for param in model.parameters() if param.requires_grad)
    finite = torch.tensor([all(bool(part.isfinite().all()) for part in parts)], device=accelerator.device)
    return bool(accelerator.gather(finite).all())


def separable(accelerator: Any) -> bool:
    """Whether domain gradients can be told apart on this back end: one process, DDP or FSDP2."""
    kind = accelerator.distributed_type
    sharded = kind == DistributedType.FSDP and accelerator.is_fsdp2
    return kind == DistributedType.NO or kind in _DDP or sharded


# Averaging over ranks


@dataclass(frozen=True)
class Reduction:
    """How the ranks of one training average gradients.

    Args:
        module: the prepared model, out of ``torch.compile``'s wrapper: a DDP or FSDP2 module, or a plain one.
    """

    module: nn.Module

    @classmethod
    def of(cls, prepared: nn.Module) -> "Reduction":
        """The reduction of a model as ``accelerator.prepare`` gave it."""
        if isinstance(prepared, FSDPModule):
            return cls(prepared)  # accelerate shards the compiled module, wrapper and all
        return cls(getattr(prepared, "_orig_mod", prepared))

    @property
    def replicated(self) -> bool:
        """Whether every rank holds whole parameters, averaged by DDP."""
        return isinstance(self.module, DistributedDataParallel)

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 spreads parameters and gradients over ranks."""
        return isinstance(self.module, FSDPModule)

    @property
    def group(self) -> Any:
        """The process group over which the Surgeon averages; None where it is not the one to do it."""
        return self.module.process_group if isinstance(self.module, DistributedDataParallel) else None

    def backward(self, *, reduce: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of one micro-batch whose domain is kept apart.

        Args:
            reduce: whether a sharded model averages its gradients, all that it has held back with them.
        """
        if isinstance(self.module, DistributedDataParallel):
            return self.module.no_sync()
        if isinstance(self.module, FSDPModule):
            return _reducing(self.module, reduce)
        return nullcontext()

    def check(self, model: nn.Module) -> None:
        """Refuses parameters whose gradients nothing would average.

        Raises:
            UnsupportedError: a trainable parameter that is whole on every rank beside sharded ones.
        """
        if not self.sharded:
            return
        for name, param in parameters_of(model).items():
            if param.requires_grad and not isinstance(param, DTensor):
                raise UnsupportedError(
                    f"The parameter {name!r} is trained and FSDP2 does not shard it, so its gradient would "
                    "not be averaged before domains are combined. Take it out of ignored_modules, or attach adapters "
                    "before the model is sharded."
                )


@contextmanager
def _reducing(module: FSDPModule, reduce: bool) -> Iterator[None]:
    module.set_requires_gradient_sync(reduce)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
