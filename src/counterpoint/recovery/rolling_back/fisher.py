"""The diagonal of the Fisher matrix of a domain's likelihood at a model.

With n completions y of the domain's prompts x, sampled from the model itself:

    F = 1/n sum over completions of (d log pi(y | x) / d theta)^2,      log pi(y | x) = sum over tokens

an unbiased estimate of the diagonal of E[grad log pi grad log pi'] where completions are drawn at temperature 1. It
needs one backward pass per completion, and memory for a gradient and a float32 copy of the weights beside the model.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from counterpoint.anatomy import plain_name
from counterpoint.diagnosis._surrogates import log_probs
from counterpoint.diagnosis.rollouts import Rollouts, collate
from counterpoint.errors import CounterpointError
from counterpoint.models import is_out_of_memory
from counterpoint.progress import Progress, silent


def diagonal_fisher(
    model: Any, rollouts: Rollouts, names: Iterable[str], on_progress: Progress = silent
) -> dict[str, Tensor]:
    """F of the parameters with these plain names, per completion: float32 on the host.

    Args:
        model: a causal language model, in evaluation mode.
        rollouts: the domain's completions, sampled from ``model``.
        names: the parameters that are wanted.
        on_progress: called with ``Fisher of DOMAIN``, completions done and in total.

    Raises:
        CounterpointError: memory does not suffice, or a gradient is not finite.
    """
    wanted = set(names)
    params = {plain_name(name): param for name, param in model.named_parameters() if plain_name(name) in wanted}
    for param in model.parameters():
        param.requires_grad_(False)
    for param in params.values():
        param.requires_grad_(True)
    try:
        sums = {name: torch.zeros_like(param, dtype=torch.float32) for name, param in params.items()}
        for done, item in enumerate(rollouts.items, 1):
            batch = collate([item], pad_id=0).to(model.device)
            loss = (log_probs(model, batch) * batch.completion_BT[:, 1:]).sum()
            gradients = torch.autograd.grad(loss, list(params.values()), materialize_grads=True)
            for total, gradient in zip(sums.values(), gradients, strict=True):
                total.add_(gradient.float().square_())
            on_progress(f"Fisher of {rollouts.domain}", done, len(rollouts))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CounterpointError(
            "Memory does not suffice for the Fisher diagonal, which needs a gradient and a float32 copy beside the "
            "model. Shorten completions (training.max_completion_length), or use --score magnitude."
        ) from error
    finally:
        model.requires_grad_(False)
    for name, total in sums.items():
        if not bool(total.isfinite().all()):
            raise CounterpointError(
                f"{name}: gradients on the domain {rollouts.domain!r} are not finite numbers. Load the model in "
                "float32 (model.dtype), or use --score magnitude."
            )
    return {name: (total / len(rollouts)).cpu() for name, total in sums.items()}
