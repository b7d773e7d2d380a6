"""When gradients are averaged over ranks, so that a domain's gradient is that domain's gradient and no mixture.

Averaging costs a collective over all parameters, so each domain is averaged once per optimizer step where the back end
allows it. DDP is kept from averaging at all (``no_sync``) and the Surgeon averages each domain when it combines them;
FSDP2 averages in the backward pass that ends a domain's stretch of micro-batches.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from counterpoint.errors import UnsupportedError

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
"""Parts of a parameter's name that activation checkpointing and ``torch.compile`` put in."""


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

    def check(self, named: Mapping[str, nn.Parameter]) -> None:
        """Refuses parameters whose gradients nothing would average.

        Raises:
            UnsupportedError: a trainable parameter that is whole on every rank beside sharded ones.
        """
        if not self.sharded:
            return
        for name, param in named.items():
            if param.requires_grad and not isinstance(param, DTensor):
                raise UnsupportedError(
                    f"The parameter {name!r} is trained and FSDP2 does not shard it, so its gradient would not be "
                    "averaged before domains are combined. Take it out of ignored_modules, or attach adapters before "
                    "the model is sharded."
                )


@contextmanager
def _reducing(module: FSDPModule, reduce: bool) -> Iterator[None]:
    module.set_requires_gradient_sync(reduce)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def plain_names(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the names that they have without wrappers."""
    named = {}
    for name, param in module.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        named[name] = param
    return named
