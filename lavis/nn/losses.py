"""Losses that know no model family."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def distilled_language_modelling_loss(
    logits: torch.Tensor, ema_logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy (nats) of next-token predictions with the EMA's, each text's sum over its tokens: (R,).

    Args:
        logits, ema_logits: (R, T, V), the predictions made at each place.
        labels: (R, T), IGNORE where a place does not count; shifted here.
    """
    opinion = ema_logits[:, :-1].float().softmax(dim=-1)
    each = -(logits[:, :-1].float().log_softmax(dim=-1) * opinion).sum(dim=-1)  # (R, T - 1)
    return each.masked_fill(labels[:, 1:] == IGNORE, 0.0).sum(dim=1)


def mask_tokens(
    ids: torch.Tensor, *, chance: float, mask_id: int, never: tuple[int, ...], vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose tokens to be guessed (BERT paper, section 3.1); random numbers are torch's.

    Args:
        ids: (R, T) token ids.
        chance: of a token to be chosen. Of the chosen, 80 % become `mask_id`, 10 % a random token, 10 % stay.
        never: ids that are not chosen.

    Returns:
        ids to read (R, T), and labels (R, T): the chosen tokens' ids, IGNORE elsewhere.
    """
    chosen = torch.rand(ids.shape, device=ids.device) < chance
    chosen &= ~torch.isin(ids, torch.tensor(never, device=ids.device))
    kind = torch.rand(ids.shape, device=ids.device)
    words = torch.randint(vocab_size, ids.shape, device=ids.device)
    read = torch.where(chosen & (kind < 0.8), mask_id, ids)
    read = torch.where(chosen & (kind >= 0.9), words, read)
    return read, ids.masked_fill(~chosen, IGNORE)


def masked_places(labels: torch.Tensor, chance: float) -> torch.Tensor:
    """Where the tokens stand that `mask_tokens` chose, so many that the number is always the same.

    A number that depended on the draw would have to be known on the host.

    Args:
        labels: (N,) of all tokens. chance: see `mask_tokens`.

    Returns:
        (M,) places: the chosen ones in their order, then others. M is the mean number and 6 standard deviations more:
        once in a billion batches some of the chosen are left out.
    """
    mean = chance * labels.shape[0]
    most = math.ceil(mean + 6 * math.sqrt(mean * (1 - chance)) + 6)
    return (labels == IGNORE).to(torch.uint8).argsort(stable=True)[:most]


def masked_language_modelling_loss(
    logits: torch.Tensor, ema_logits: torch.Tensor, labels: torch.Tensor, alpha: torch.Tensor | float
) -> torch.Tensor:
    """(1 - alpha) cross entropy with the labels + alpha cross entropy with the EMA's prediction (nats).

    Args:
        logits, ema_logits: (M, V), predictions of the masked tokens. labels: (M,) their ids, IGNORE of rows that don't
            count.

    Returns:
        a scalar, the mean over the masked tokens of all ranks, scaled as in `language_modelling_loss`.
    """
    logits = logits.float()
    total = (1 - alpha) * F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    agreement = (logits.log_softmax(dim=1) * ema_logits.float().softmax(dim=1)).sum(dim=1)  # (M,)
    counted = labels != IGNORE
    total = total - alpha * agreement.masked_fill(~counted, 0.0).sum()
    return total / dist.mean_over_ranks(counted.sum().to(total.dtype)).clamp(min=1)


def distillation_weight(alpha: float, epochs: float, ramp_epochs: int) -> float:
    """Weight of the EMA's opinion: rises linearly from 0 to `alpha` over the first epochs."""
    return alpha * min(1.0, epochs / ramp_epochs)


def soft_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy (nats) against distributions, both (R, C): the mean over rows, or over those that are `counted`."""
    each = -(logits.float().log_softmax(dim=1) * targets).sum(dim=1)
    return each.mean() if counted is None else each.masked_fill(~counted, 0.0).sum() / counted.sum()


def similarities(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Products (R, C) of vectors (R, E) and (C, E), at least in float32, whatever autocast says.

    bfloat16 tells no cosines apart that differ by less than 0.004, and a temperature multiplies that by up to 100.

    Args:
        rows: also (R, Q, E): a row has Q vectors, and the largest of their products counts (BLIP-2 paper, section 3.1).
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)  # float64 stays
    with torch.autocast(rows.device.type, enabled=False):
        products = rows.to(dtype) @ columns.to(dtype).T
        return products.amax(dim=1) if rows.ndim == 3 else products


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy of finding each image's text and each text's image (CLIP paper, section 2.3, figure 3).

    The W candidates are those of all ranks. Each rank counts its own pairs, so that averaging gradients over ranks
    gives the gradient of the mean over all pairs.

    Args:
        images, texts: (B, E), of length 1; row b of one belongs to row b of the other; B alike on all ranks.
        scale: what cosines are multiplied with.

    Returns:
        the mean over this rank's pairs and both directions (nats), and the scaled cosines of this rank's images
        with all texts and of its texts with all images, (B, W) each.
    """
    i2t = scale * similarities(images, dist.all_gather_with_grad(texts))
    t2i = scale * similarities(texts, dist.all_gather_with_grad(images))
    own = torch.arange(len(images), device=images.device) + dist.rank() * len(images)
    loss = (F.cross_entropy(i2t.float(), own) + F.cross_entropy(t2i.float(), own)) / 2
    return loss, i2t, t2i


def contrastive_targets(
    same: torch.Tensor, ema_sims: torch.Tensor | None, alpha: torch.Tensor | float
) -> torch.Tensor:
    """What each row should find similar (ALBEF paper, equation 6).

    Args:
        same: (R, C) bool, True where row and column belong together; several may.
        ema_sims: the EMA's similarities (R, C), or None.
        alpha: their weight.

    Returns:
        (R, C), rows summing to 1; or 0 where nothing belongs to a row and the EMA is not asked.
    """
    right = same / same.sum(dim=1, keepdim=True).clamp(min=1)
    if ema_sims is None:
        return right
    return alpha * ema_sims.softmax(dim=1) + (1 - alpha) * right


def hard_negatives(
    sims: torch.Tensor, same: torch.Tensor, floor: float = 0.0, checked: bool = False
) -> torch.Tensor:
    """For each row, the index of a column that does not belong to it, likelier the more similar it is.

    Args:
        sims: (R, C) similarities divided by the temperature.
        same: (R, C) bool, True where a column belongs to the row and must not be drawn.
        floor: added to every chance before drawing.
        checked: somebody else looks at `negatives_lacking`, and the device is not waited for here.

    Raises:
        ValueError: see `check_negatives`.
    """
    if not checked:
        check_negatives([(negatives_lacking(same, sims), same.shape[1])])
    chances = (sims.detach().float().softmax(dim=1) + floor).masked_fill(same, 0.0)
    # similarities far below the best round to 0 after softmax; any true negative may then be drawn
    chances = torch.where(chances.sum(dim=1, keepdim=True) > 0, chances, (~same).float())
    # torch.multinomial draws so, too, but waits for the device to look at the chances
    return (chances / torch.empty_like(chances).exponential_()).argmax(dim=1)


def negatives_lacking(same: torch.Tensor, *sims: torch.Tensor) -> torch.Tensor:
    """Why `hard_negatives` can't draw by one of some similarities; for `check_negatives`.

    Returns:
        (2,) whole numbers on the device: a row to which every column belongs, -1 if there is none; and whether a
        similarity is NaN.
    """
    alone = same.all(dim=1)
    row = torch.where(alone.any(), alone.long().argmax(), -1)
    strange = torch.stack([s.detach().float().softmax(dim=1).isnan() & ~same for s in sims]).any()
    return torch.stack([row, strange.long()])


def check_negatives(found: Sequence[tuple[torch.Tensor, int]]) -> None:
    """Refuse what `negatives_lacking` found in batches, in one wait for the device.

    Args:
        found: of each batch what it gave, and among how many columns.

    Raises:
        ValueError: there is no negative for a row, or similarities are NaN.
    """
    if not found:
        return
    lacking = torch.stack([each for each, _ in found]).tolist()  # (batches, 2)
    for (row, strange), (_, columns) in zip(lacking, found):
        if row >= 0:
            raise ValueError(
                f"all {columns} samples of the batch belong to the same image as sample {row}, so there is no "
                "negative to match it with; use a larger batch"
            )
        if strange:
            raise ValueError(
                "similarities of the batch are NaN or infinite, so no negative can be drawn by them; the training "
                "has diverged: take a lower learning rate, a longer warm-up, or clip gradients (run.max_grad_norm)"
            )
