"""Checkpoints read tensor by tensor: shards, tied weights, LoRA merged on the fly."""

from .reading import Checkpoint, Comparison, compare, open_checkpoint

__all__ = ["Checkpoint", "Comparison", "compare", "open_checkpoint"]
