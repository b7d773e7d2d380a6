"""Log-probabilities of one model at several temperatures: TRL's fused head of each, and which of them is in use."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

from trl.trainer.utils import add_fused_lm_head


def add_temperatures(
    model: Any, present: float, temperatures: Sequence[float], current: Callable[[], float], **options: Any
) -> None:
    """Makes a model that scores at the temperature ``present`` score at the ``current()`` one of ``temperatures``.

    Args:
        model: a causal language model with TRL's fused head.
        options: further arguments of ``trl.trainer.utils.add_fused_lm_head``.
    """
    heads = {present: model.forward}
    for temperature in temperatures:
        if temperature not in heads:
            add_fused_lm_head(model, temperature=temperature, **options)
            heads[temperature], model.forward = model.forward, heads[present]

    @functools.wraps(type(model).forward)  # generation checks its arguments against the signature
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        head = heads[current()] if fused_lm_head else heads[present]
        return head(*args, fused_lm_head=fused_lm_head, **kwargs)

    model.forward = types.MethodType(forward, model)
