"""Losses of images with their texts: contrast (ITC), matching (ITM), masked tokens (MLM), statements that are judged.

Contrast: the product of two projected features, computed apart. Matching: a classifier over the text's states after
they have read the image. A network here is an `Alignment`.

B images (or videos), R rows of text, T tokens, N image tokens, D width, E width of a feature, Q places in the queue,
W = B x ranks, K statements per image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from lavis.common import dist
from lavis.models.checkpoints import START_TEMPERATURE
from lavis.models.fusion import TextStates, interleaved
from lavis.models.outputs import Similarity
from lavis.nn.ema import NewFeatures
from lavis.nn.losses import (
    contrastive_loss,
    contrastive_targets,
    hard_negatives,
    mask_tokens,
    masked_language_modelling_loss,
    masked_places,
    negatives_lacking,
    similarities,
    soft_cross_entropy,
)


@dataclass(frozen=True)
class Pairs:
    """A training batch as the network, or its EMA, encodes it: states of images (B, N, D) and of texts (B, T, D), and
    their features (B, E), of length 1."""

    image_embeds: torch.Tensor
    text_embeds: torch.Tensor
    image_feat: torch.Tensor
    text_feat: torch.Tensor


@dataclass(frozen=True)
class Contrast:
    """loss: scalar. sims: see `Similarity`. new: what the batch has for the queue.

    by_image, by_text: (B, B) similarities over the temperature, of images with texts and back, by which hard
    negatives are drawn.
    """

    loss: torch.Tensor
    sims: Similarity
    new: NewFeatures | None
    by_image: torch.Tensor
    by_text: torch.Tensor


@dataclass(frozen=True)
class Candidates:
    """What hard negatives are drawn from.

    by_image, by_text: (B, C) similarities over the temperature, of images with texts and back. same: (B, C) bool,
    pairs that must not be drawn. images, texts: the C of them, where they are not the batch itself (all ranks').
    """

    by_image: torch.Tensor
    by_text: torch.Tensor
    same: torch.Tensor
    images: torch.Tensor | None = None
    texts: TextStates | None = None

    def masked(self) -> Candidates:
        """Own pairs go before the softmax: beside a near-perfect one all others would round to 0."""
        by_image, by_text = (s.masked_fill(self.same, -torch.inf) for s in (self.by_image, self.by_text))
        return Candidates(by_image, by_text, self.same, self.images, self.texts)


@dataclass(frozen=True)
class Matching:
    """loss: scalar. logits (3B, 2), labels (3B,): right pairs, wrong image, wrong text. positive (B, T, D) and
    negative (2B, T, D): the fused states. memory: the B images', as `memorize` gave it. lacking: see
    `negatives_lacking`."""

    loss: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor
    memory: Any
    lacking: torch.Tensor


def contrast_with_ema(
    network: Any,
    own: Pairs,
    ema: Pairs,
    alpha: torch.Tensor | float,
    ids: torch.Tensor | None = None,
) -> Contrast:
    """Contrastive loss against the EMA's features of all ranks and the queue (ALBEF paper, eq. 6).

    Args:
        alpha: weight of the EMA's similarities in the targets.
        ids: (B,) images' ids; equal ids belong together. None: each row with its own only.
    """
    batch, rank = own.image_feat.shape[0], dist.rank()
    images, texts = dist.all_gather(ema.image_feat), dist.all_gather(ema.text_feat)  # (W, E)
    if ids is None:
        known = torch.arange(len(images), device=images.device)
        wanted = known[rank * batch : (rank + 1) * batch]
    else:
        known, wanted = dist.all_gather(ids), ids
    new = NewFeatures(images, texts, None if ids is None else known)
    if hasattr(network, "image_queue"):
        images = torch.cat([images, network.image_queue.T])  # (W + Q, E)
        texts = torch.cat([texts, network.text_queue.T])
        queued = network.idx_queue[0] if ids is not None else known.new_full((len(images) - len(known),), -1)
        known = torch.cat([known, queued])
    same, temperature = wanted[:, None] == known[None, :], network.temperature  # (B, W + Q), (1,)
    sim_i2t_m = (similarities(ema.image_feat, texts) / temperature).detach()
    sim_t2i_m = (similarities(ema.text_feat, images) / temperature).detach()
    i2t_targets = contrastive_targets(same, sim_i2t_m, alpha)
    t2i_targets = contrastive_targets(same, sim_t2i_m, alpha)
    sim_i2t = similarities(own.image_feat, texts) / temperature
    sim_t2i = similarities(own.text_feat, images) / temperature
    here = slice(rank * batch, (rank + 1) * batch)
    return Contrast(
        loss=(soft_cross_entropy(sim_i2t, i2t_targets) + soft_cross_entropy(sim_t2i, t2i_targets)) / 2,
        sims=Similarity(sim_i2t, sim_t2i, sim_i2t_m, sim_t2i_m, i2t_targets, t2i_targets),
        new=new,
        by_image=sim_i2t[:, here].detach(),
        by_text=sim_t2i[:, here].detach(),
    )


def contrast_in_batch(network: Any, own: Pairs) -> Contrast:
    """Contrastive loss against all ranks' features, through which gradients flow (ALPRO paper, section 3.2)."""
    loss, sim_i2t, sim_t2i = contrastive_loss(own.image_feat, own.text_feat, 1 / network.temperature)
    batch = len(own.image_feat)
    here = slice(dist.rank() * batch, (dist.rank() + 1) * batch)
    sims = Similarity(sim_i2t, sim_t2i)  # (B, W)
    return Contrast(loss, sims, None, sim_i2t[:, here].detach(), sim_t2i[:, here].detach())


def candidates_by_features(
    network: Any, text: TextStates, own: Pairs, ids: torch.Tensor, all_ranks: bool
) -> Candidates:
    """Candidates by the similarities of the network's own features, of this rank's batch or of all; gradients flow
    back to the ranks."""
    image_feat, text_feat = own.image_feat.detach(), own.text_feat.detach()
    temperature = network.temperature.detach()
    if not (all_ranks and dist.is_on()):
        return Candidates(
            similarities(image_feat, text_feat) / temperature,
            similarities(text_feat, image_feat) / temperature,
            ids[:, None] == ids[None, :],
        )
    image_feats, text_feats = dist.all_gather(own.image_feat), dist.all_gather(own.text_feat)
    tokens = type(text.tokens)(dist.all_gather(text.tokens.ids), dist.all_gather(text.tokens.mask))
    return Candidates(
        similarities(image_feat, text_feats) / temperature,  # (B, W)
        similarities(text_feat, image_feats) / temperature,
        ids[:, None] == dist.all_gather(ids)[None, :],
        images=dist.all_gather_with_grad(own.image_embeds),
        texts=TextStates(tokens),
    )


def match(
    network: Any, text: TextStates, image_embeds: torch.Tensor, candidates: Candidates, floor: float = 0.0
) -> Matching:
    """Matching loss of each pair, of each text with a hard image, of each image with a hard text.

    The images are projected once: an image's right and wrong text are a group over one memory.

    Args:
        text: B texts. image_embeds: (B, N, D) of their images. floor: see `hard_negatives`.
    """
    batch, device, same = image_embeds.shape[0], image_embeds.device, candidates.same
    images, texts = candidates.images, candidates.texts or text
    wrong_image = hard_negatives(candidates.by_text, same, floor, True)
    wrong_text = hard_negatives(candidates.by_image, same, floor, True)
    memory = network.memorize(image_embeds)
    own = network.fuse(interleaved(text, texts.select(wrong_text)), memory)
    own = own.unflatten(0, (batch, 2))  # (B, 2, T, D)
    wrong = memory.select(wrong_image) if images is None else network.memorize(images[wrong_image])
    other = network.fuse(text, wrong)  # (B, T, D)
    states = torch.cat([own[:, 0], other, own[:, 1]])
    logits = network.itm_head(states[:, 0])
    labels = torch.zeros(3 * batch, dtype=torch.long, device=device)
    labels[:batch] = 1
    return Matching(
        loss=F.cross_entropy(logits.float(), labels),
        logits=logits,
        labels=labels,
        positive=states[:batch],
        negative=states[batch:],
        memory=memory,
        lacking=negatives_lacking(same, candidates.by_text, candidates.by_image),
    )


def own_or_true(batch: Mapping[str, Any], images: torch.Tensor) -> torch.Tensor:
    """(B, B) bool: which texts can't serve as wrong ones: an image's own, and where `fits` says what is true (see
    `judge`), those that are true of another, or whose image the other's text is true of."""
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    if batch.get("fits") is None:
        return own
    fits = batch["fits"].bool().unflatten(1, (len(images), -1))[:, :, 0]
    return own | fits | fits.T


def judge(
    network: Any, batch: Mapping[str, Any], image_feat: torch.Tensor, memory: Any, contrasts: bool
) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Contrast and matching of statements of which it is known whether they are true; 0 where there are none.

    Matched is each image with its own statements, contrasted are all images of this rank with all statements; a
    statement may be true of several images or of none. Beside them the learned temperature, at which a text has one
    image, would be far too sharp.

    Args:
        batch: see `PairEncoder`. image_feat: (B, E). memory: the B images', as `memorize` gave it.
        contrasts: whether the contrast is wanted; 0 without.

    Returns:
        the two losses (nats).
    """
    if "statements" not in batch["tokens"]:
        return 0.0, 0.0
    images = len(image_feat)
    fits = batch["fits"].bool().unflatten(1, (images, -1))  # (B, B, K)
    fits = fits.gather(2, batch["statement_order"].expand(images, -1, -1))
    logits, feats = [], []
    for tokens in batch["tokens"]["statements"]:  # a few of each image
        shape = (images, tokens.ids.shape[0] // images)
        states = network.encode_text(tokens) if contrasts or network.FUSES_STATES else None
        text = TextStates(tokens, states if network.FUSES_STATES else None)
        logits.append(network.match_logits(text, memory, only_first=True).unflatten(0, shape))
        if contrasts:
            feats.append(network.text_feature(states).unflatten(0, shape))
    own = fits.diagonal().T.long()  # (B, K)
    loss_itm = F.cross_entropy(torch.cat(logits, dim=1).flatten(0, 1).float(), own.flatten())
    if not contrasts:
        return 0.0, loss_itm
    true = fits.flatten(1)  # (B, B·K)
    sims = image_feat @ torch.cat(feats, dim=1).flatten(0, 1).T / START_TEMPERATURE
    # images all have their own text; some statements are true of none
    loss_i2t = soft_cross_entropy(sims, contrastive_targets(true, None, 0.0))
    loss_t2i = soft_cross_entropy(sims.T, contrastive_targets(true.T, None, 0.0), true.any(dim=0))
    return (loss_i2t + loss_t2i) / 2, loss_itm


def guess_masked(
    network: Any, text: TextStates, memory: Any, image_embeds_m: torch.Tensor, alpha: torch.Tensor | float
) -> torch.Tensor:
    """Loss of guessing masked tokens of the texts over their images; the EMA's guesses weigh `alpha`."""
    tokenizer, chance = network.tokenizer, network.config.mlm_mask_prob
    ids, labels = mask_tokens(
        text.tokens.ids,
        chance=chance,
        mask_id=tokenizer.mask_id,
        never=(tokenizer.pad_id, tokenizer.cls_id),
        vocab_size=network.config.text.vocab_size,
    )
    labels = labels.flatten()
    places = masked_places(labels, chance)  # (M,)
    labels = labels[places]

    def guesses(memory: Any, ema: bool) -> torch.Tensor:  # (M, V)
        states = network.bert(ema)(ids, mask=text.tokens.mask, memory=memory)
        return network.part("text_encoder", ema).cls(states.flatten(0, 1)[places])

    with torch.no_grad():
        opinion = guesses(network.memorize(image_embeds_m, ema=True), ema=True)
    return masked_language_modelling_loss(guesses(memory, ema=False), opinion, labels, alpha)
