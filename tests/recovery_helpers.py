"""Small checkpoints on disk before and after an edit, for tests of recovery."""

import torch

from counterpoint.recovery.rolling_back.edit import open_edit
from diagnosis_models import random_model, save


def edited(tensors, seed=1, share=1.0, size=0.1):
    """The tensors with a random edit in about ``share`` of their weights."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in tensors.items():
        change = size * torch.randn(tensor.shape, generator=generator)
        change *= torch.rand(tensor.shape, generator=generator) < share
        moved[name] = (tensor.float() + change).to(tensor.dtype)
    return moved


def saved_edit(folder, *, share=1.0, shards=1, tied=True, **model):
    """``(Edit, tensors before, tensors after)`` of a random model on disk."""
    before = random_model(0, **model)
    after = edited(before, share=share)
    save(folder / "before", before, tied=tied)
    save(folder / "after", after, shards=shards, tied=tied)
    return open_edit(folder / "before", folder / "after"), before, after
