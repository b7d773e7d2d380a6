"""Checkpoints read and written tensor by tensor: shards, tied weights, LoRA merged on the fly."""

from .comparing import Comparison, compare
from .conversion import Conversion, anatomy_of
from .reading import Checkpoint, open_checkpoint
from .writing import check_output, write_checkpoint

__all__ = [
    "Checkpoint",
    "Comparison",
    "Conversion",
    "anatomy_of",
    "check_output",
    "compare",
    "open_checkpoint",
    "write_checkpoint",
]
