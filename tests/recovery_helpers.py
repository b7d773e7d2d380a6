"""Small checkpoints on disk before and after an edit, for tests of recovery."""

import torch

from counterpoint.diagnosis._edit_vector import changed_weights
from counterpoint.recovery.masks import TopMask, WeightScores, open_edit
from counterpoint.topk import Ranking
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


def top_mask(edit, count, fisher=None):
    """The ``count`` weights that were changed most, or those with the largest F d^2."""
    scores = WeightScores(edit, fisher)
    (cut,) = Ranking.of(list(changed_weights(edit)), scores).cuts([count])
    return TopMask(cut, scores)


def held(mask, edit):
    """The mask of every tensor in full."""
    found = {}
    for name in edit.names:
        part = mask.of(name)
        shape = edit.shape(name)
        found[name] = torch.zeros(shape, dtype=torch.bool) if part is None else part.expand(shape)
    return found
