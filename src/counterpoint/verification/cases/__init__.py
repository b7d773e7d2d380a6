"""The cases of the exactness suite by name."""

from ..case import Case
from .ddp import DDP
from .fsdp import FSDP
from .single import SINGLE
from .tensor_parallel import TENSOR_PARALLEL

CASES: dict[str, Case] = {**SINGLE, **DDP, **FSDP, **TENSOR_PARALLEL}
"""Each runs where the ranks and the installed packages allow it."""
