"""Losses that know no model family."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lavis.common import dist

IGNORE = -100  # label of a place that does not count


def language_modelling_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, smoothing: float = 0.0, per_text: bool = False
) -> torch.Tensor:
    """Next-token cross entropy (natural logarithm), labels shifted here.

    Args:
        logits: (R, T, V), the prediction made at each place.
        labels: (R, T) token ids, IGNORE where a place does not count.
        smoothing: label smoothing; BLIP uses 0.1, in training and when it ranks answers.
        per_text: give each text's sum over its tokens instead of one mean.

    Returns:
        a scalar, the mean over counted places of all ranks' texts (each rank's share is scaled so
        that averaging gradients over ranks gives the gradient of that mean); or (R,) sums.
    """
    shifted = logits[:, :-1].float().flatten(0, 1)  # (R·(T-1), V)
    targets = labels[:, 1:].flatten()
    if per_text:
        each = F.cross_entropy(
            shifted, targets, ignore_index=IGNORE, label_smoothing=smoothing, reduction="none"
        )
        return each.view(labels.shape[0], -1).sum(1)
    total = F.cross_entropy(shifted, targets, ignore_index=IGNORE, label_smoothing=smoothing, reduction="sum")
    count = (targets != IGNORE).sum().to(total.dtype)
    return total / dist.mean_over_ranks(count).clamp(min=1)
