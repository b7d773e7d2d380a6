"""Edits of several experts as one edit. Pure functions on one tensor's edits; the first axis E is the experts."""

from collections.abc import Sequence

import torch
from torch import Tensor


def average(edits_E: Tensor) -> Tensor:
    """The mean edit: base + average is the mean of the experts' weights.

    M. Wortsman et al. (2022), arXiv 2203.05482 (uniform soup).

    Args:
        edits_E: expert - base for each expert [E, ...].
    """
    return edits_E.mean(0)


def task_arithmetic(edits_E: Tensor) -> Tensor:
    """The sum of the edits, to be scaled. G. Ilharco et al. (2023), arXiv 2212.04089, section 2.

    Args:
        edits_E: expert - base for each expert [E, ...].
    """
    return edits_E.sum(0)


def ties(edits_E: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Trim, elect sign, disjoint mean. P. Yadav et al. (2023), arXiv 2306.01708, section 4 and algorithm 1.

    Of every weight: edits smaller than their expert's threshold count as zero; the sign with the larger total wins;
    the result is the mean over the experts whose edit is left and has that sign, zero where none is.

    Args:
        edits_E: expert - base for each expert [E, ...].
        thresholds: the smallest magnitude that is kept, of each expert; see ``magnitude_threshold``.
    """
    limits_E = torch.tensor(thresholds, dtype=edits_E.dtype).reshape(-1, *[1] * (edits_E.dim() - 1))
    trimmed_E = torch.where(edits_E.abs() >= limits_E, edits_E, 0.0)
    elected = trimmed_E.sum(0).sign()
    agreeing_E = (trimmed_E.sign() == elected) & (trimmed_E != 0)
    return torch.where(agreeing_E, trimmed_E, 0.0).sum(0) / agreeing_E.sum(0).clamp(min=1)
