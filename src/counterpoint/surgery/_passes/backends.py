"""Models whose gradients a Surgeon cannot combine, however they are grouped, refused before anything is collected."""

from collections.abc import Iterable, Mapping

from torch import nn

from ...errors import UnsupportedError


def refuse_inexact(model: object, named: Mapping[str, nn.Parameter]) -> None:
    """Refuses a model, or its parameters, whose ``.grad`` is not the gradient that the optimizer will use.

    Raises:
        UnsupportedError: naming the back end, why it cannot be exact, and what to use instead.
    """
    # By name: DeepSpeed is not installed with counterpoint, and asking for its class would import it.
    if any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__) or _any(named.values(), "ds_id"):
        raise UnsupportedError(
            "DeepSpeed keeps gradients of its own and steps the optimizer inside backward, so domain gradients cannot "
            "be combined before the step. Use FSDP2 (torch.distributed.fsdp.fully_shard) or DDP."
        )
    # torch's own mark, also on the original parameters that FSDP1 shows with use_orig_params=True. Inner products would
    # be those of one rank's shard, silently.
    if _any(named.values(), "_fsdp_flattened"):
        raise UnsupportedError(
            "FSDP1 (FullyShardedDataParallel) keeps flat parameters, cut anywhere, so that a rank's .grad is a piece "
            "of no module's gradient. Use FSDP2 (torch.distributed.fsdp.fully_shard)."
        )


def _any(parameters: Iterable[nn.Parameter], mark: str) -> bool:
    return any(hasattr(parameter, mark) for parameter in parameters)
