"""What images with their texts teach an `Alignment`: its losses in a training step.

B images (or videos), N image tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lavis.models.fusion import TextStates
from lavis.models.outputs import DecoderOutput, EncoderOutput, IntermediateOutput, LossOutput
from lavis.models.pair_losses import (
    Candidates,
    Contrast,
    Matching,
    Pairs,
    candidates_by_features,
    contrast_in_batch,
    contrast_with_ema,
    guess_masked,
    judge,
    match,
    own_or_true,
)
from lavis.models.presets import SMOOTHING
from lavis.models.tokenizer import Tokens
from lavis.nn.losses import IGNORE, check_negatives, language_modelling_loss


@dataclass(frozen=True)
class Objective:
    """What a class of the network is trained on.

    Attributes:
        losses: contrast ("itc"), matching ("itm"), language modelling ("lm"), masked tokens ("mlm"); those that
            `config.losses` leaves out don't count.
        by_id: whether several texts of an image are all right; `image_id` then says which belong together.
        hard_by: similarities by which hard negatives are drawn: "contrast", those of the contrast; "features", of the
            network's own features in the batch.
        masked: whether own pairs leave before the softmax of which hard negatives are drawn, see `Candidates.masked`.
        floor: see `hard_negatives`.
    """

    losses: tuple[str, ...] = ("itc", "itm")
    by_id: bool = False
    hard_by: str = "contrast"
    masked: bool = False
    floor: float = 0.0


def training_loss(network: Any, batch: Mapping[str, Any]) -> LossOutput:
    """The losses of an encoded batch, see `PairEncoder`: the sum of those that are chosen, and each by itself.

    Args:
        batch: `image` (B, 3, h, w), or `video`; with EMA copies also `epoch`, `iters`, `num_iters_per_epoch`, where
            the step of the optimizer doesn't say where training is.
    """
    objective: Objective = network.OBJECTIVE
    image, tokens = batch[network.MEDIA], batch["tokens"]["text"]
    ids = batch["image_id"] if objective.by_id else None
    alpha, ema = _distillation(network, batch), None
    own = encode_pairs(network, image, tokens)
    if network.EMA:
        with torch.no_grad():
            ema = encode_pairs(network, image, tokens, ema=True)
        contrast = contrast_with_ema(network, own, ema, alpha, ids)
    else:
        contrast = contrast_in_batch(network, own)
    text = TextStates(tokens, own.text_embeds if network.FUSES_STATES else None)
    candidates = _candidates(network, batch, text, own, contrast)
    matching = match(network, text, own.image_embeds, candidates, objective.floor)
    # whether there were negatives is asked at the end of the step, so that nothing waits here
    if network.optimizer_step is not None:
        network.note((contrast.new, matching.lacking, candidates.same.shape[1]))
    elif not torch.compiler.is_compiling():
        check_negatives([(matching.lacking, candidates.same.shape[1])])

    judged_itc, judged_itm = judge(network, batch, own.image_feat, matching.memory, "itc" in network.losses)
    losses = {"itc": contrast.loss + judged_itc, "itm": matching.loss + judged_itm}
    states = _states(own, ema, contrast, matching)
    # what the matching read of the images serves writing and guessing, too
    if "lm" in network.losses:
        losses["lm"], states = _write(network, tokens, matching.memory, states)
    if "mlm" in network.losses:
        assert ema is not None
        losses["mlm"] = guess_masked(network, text, matching.memory, ema.image_embeds, alpha)
    sims = contrast.sims
    if objective.hard_by == "features":
        sims = replace(sims, sim_i2t=candidates.by_image, sim_t2i=candidates.by_text)
    return LossOutput(
        sims=sims,
        intermediate_output=states,
        loss=sum((losses[name] for name in network.losses), torch.zeros((), device=image.device)),
        **{f"loss_{name}": loss for name, loss in losses.items()},
    )


def encode_pairs(network: Any, image: torch.Tensor, tokens: Tokens, *, ema: bool = False) -> Pairs:
    """States and features of images and of their texts."""
    images, texts = network.encode_image(image, ema=ema), network.encode_text(tokens, ema=ema)
    return Pairs(images, texts, network.image_feature(images, ema=ema), network.text_feature(texts, ema=ema))


def _distillation(network: Any, batch: Mapping[str, Any]) -> torch.Tensor | float:
    """How much the EMA's opinion weighs in the targets."""
    if not network.EMA:
        return 0.0
    network.need_ema()
    return network.alpha(batch) if getattr(network.config, "use_distill", True) else 0.0


def _candidates(
    network: Any, batch: Mapping[str, Any], text: TextStates, own: Pairs, contrast: Contrast
) -> Candidates:
    """What hard negatives are drawn from."""
    objective: Objective = network.OBJECTIVE
    if objective.hard_by == "features":
        return candidates_by_features(network, text, own, batch["image_id"], network.config.negative_all_rank)
    ids = batch["image_id"] if objective.by_id else None
    same = own_or_true(batch, own.image_embeds) if ids is None else ids[:, None] == ids[None, :]
    candidates = Candidates(contrast.by_image, contrast.by_text, same)
    return candidates.masked() if objective.masked else candidates


def _write(
    network: Any, tokens: Tokens, memory: Any, states: IntermediateOutput
) -> tuple[torch.Tensor, IntermediateOutput]:
    """Loss of writing the texts over their images."""
    ids = tokens.ids.clone()
    ids[:, 0] = network.bos_id
    labels = ids.masked_fill(~tokens.mask, IGNORE)
    logits = network.text_decoder(ids, mask=tokens.mask, memory=memory)
    loss = language_modelling_loss(logits, labels, smoothing=SMOOTHING)
    shown = DecoderOutput(loss=loss, logits=logits)
    return loss, replace(states, decoder_output=shown, decoder_labels=labels)


def _states(own: Pairs, ema: Pairs | None, contrast: Contrast, matching: Matching) -> IntermediateOutput:
    """What `forward` shows of a step."""
    return IntermediateOutput(
        image_embeds=own.image_embeds,
        text_embeds=own.text_embeds,
        image_embeds_m=None if ema is None else ema.image_embeds,
        text_embeds_m=None if ema is None else ema.text_embeds,
        encoder_output=EncoderOutput(matching.positive),
        encoder_output_neg=EncoderOutput(matching.negative),
        itm_logits=matching.logits,
        itm_labels=matching.labels,
        new_features=contrast.new,
    )
