"""BLIP's contrast and matching heads: features, scores, retrieval, pre-training (BLIP paper, 3.2 and 5.1).

B pictures, G texts per picture, R = B·G texts, T tokens, N image tokens, D width, E width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lavis.common import dist
from lavis.common.gradcam import gradcam, patch_grid
from lavis.common.registry import registry
from lavis.models.alignment import Alignment, ContrastiveStep, Matching, TextStates
from lavis.models.base import finite_results, inference, own_step, prepared
from lavis.models.blip import Blip, BlipConfig
from lavis.models.checkpoints import EMA_COPIES, NEW_QUEUES, TRAINING_STATE, TRANSFORMERS_BLIP, Rules
from lavis.models.outputs import DecoderOutput, Features, LossOutput
from lavis.models.presets import RESIZE, SMOOTHING
from lavis.models.samples import media_of, texts_of
from lavis.models.tokenizer import Encoding, Tokens
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import IGNORE, language_modelling_loss, similarities
from lavis.nn.text import Memory


@dataclass(frozen=True)
class BlipMatchingConfig(BlipConfig):
    """
    Attributes:
        embed_dim: width of the projected features.
        queue_size: features of the EMA that are kept as negatives; 0: none.
        negative_all_rank: draw hard negatives from all ranks' batches instead of the own one.
        losses: what pre-training trains on: contrast ("itc"), matching ("itm"), language modelling ("lm").
    """

    max_txt_len: int = 35
    embed_dim: int = 256
    queue_size: int = 57600
    negative_all_rank: bool = False
    losses: tuple[str, ...] = ("itc", "itm", "lm")


class BlipMatching(Blip):
    """A text encoder that reads a text alone, or over a picture when it begins with [ENC]."""

    FUSES_STATES = False
    part: Any
    text_encoder: Any
    enc_id: int

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        return self.part("text_encoder", ema)(tokens.ids, mask=tokens.mask)

    def memorize(self, image_embeds: torch.Tensor, *, ema: bool = False) -> Memory:
        return self.part("text_encoder", ema).project_memory(image_embeds)

    def fuse(
        self, text: TextStates, memory: Memory, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        encoder, mask = self.part("text_encoder", ema), text.tokens.mask
        if text.states is not None:
            return encoder.run(text.states, mask=mask, memory=memory, only_first=only_first, begun=True)
        return encoder(self._reading(text.tokens), mask=mask, memory=memory, only_first=only_first)

    def begin(self, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """The first layer's self-attention."""
        return self.text_encoder.begin(self._reading(tokens), tokens.mask)

    def _reading(self, tokens: Tokens) -> torch.Tensor:
        """(R, T) with the token that stands before a text which reads a picture."""
        ids = tokens.ids.clone()
        ids[:, 0] = self.enc_id
        return ids


# --------------------------------------------------------------------------------------- features


@registry.register_model("blip_feature_extractor")
class BlipFeatureExtractor(BlipMatching, Alignment):
    """States and projections of pictures, texts, and of texts over pictures."""

    registered_name = "blip_feature_extractor"
    MATCHES = False
    match_texts = explain_text = None  # type: ignore[assignment]  # for want of that head
    FOREIGN_RULES = (replace(TRANSFORMERS_BLIP, drop=("itm_head.*",), resize=RESIZE),)
    RULES = Rules(drop=(*TRAINING_STATE, "text_decoder.*", "itm_head.*"), resize=RESIZE)
    PRETRAINED_RULES = RULES

    @inference
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> Features:
        """Features of pictures and texts.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`, B·G texts; "image" and "text" need only one.
            mode: "image": image_embeds (B, N, D), image_embeds_proj (B, N, E). "text": text_embeds (R, T, D),
                text_embeds_proj (R, T, E). "multimodal": image_embeds and multimodal_embeds (R, T, D), the
                texts' states over their pictures. Projections have length 1; token 0 stands for the whole.

        Returns:
            the fields of the mode. Texts are not cut.
        """
        return self._features(samples, mode)


# --------------------------------------------------------------------------------------- matching


@registry.register_model("blip_image_text_matching")
class BlipITM(BlipMatching, Alignment):
    """How well texts fit pictures."""

    registered_name = "blip_image_text_matching"
    TEMPERATURE = False
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(drop=(*TRAINING_STATE, "text_decoder.*"), resize=RESIZE)

    @prepared
    def forward(self, samples: Mapping[str, Any], match_head: str = "itm") -> torch.Tensor:
        """Compare pictures and texts.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G texts, a picture's next to one another.
            match_head: "itm": logits (B·G, 2) of "does not fit" and "fits" for each text with its picture;
                "itc": cosine similarities (B, B·G) of every picture with every text.

        Returns:
            the logits or similarities.
        """
        if match_head not in ("itm", "itc"):
            raise ValueError(f"match_head is {match_head!r}; it must be 'itm' or 'itc'")
        with finite_results(self, samples) as check:
            image_embeds = self.encode_image(media_of(samples, self.MEDIA, self.device))
            texts = texts_of(samples, image_embeds.shape[0])
            tokens = self.tokens(texts, max_length=self.config.max_txt_len)
            if match_head == "itm":
                return check(self.match_logits(TextStates(tokens), self.memorize(image_embeds)))
            texts_found = self.text_feature(self.encode_text(tokens))
            return check(similarities(self.image_feature(image_embeds), texts_found))

    @inference
    def match_scores(self, samples: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probability that each text fits its picture (B·G,), and their cosine similarity (B·G,)."""
        image_embeds = self.encode_image(media_of(samples, self.MEDIA, self.device))
        tokens = self.tokens(texts_of(samples, image_embeds.shape[0]), max_length=self.config.max_txt_len)
        fits = self.match_logits(TextStates(tokens), self.memorize(image_embeds)).softmax(dim=1)[:, 1]
        texts = self.text_feature(self.encode_text(tokens)).unflatten(
            0, (image_embeds.shape[0], -1)
        )  # (B, G, E)
        return fits, (texts * self.image_feature(image_embeds)[:, None]).sum(dim=-1).flatten()


def compute_gradcam(
    model: BlipITM,
    visual_input: torch.Tensor,
    text_input: list[str],
    tokenized_text: Encoding | Tokens,
    block_num: int = 6,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Where each word finds its evidence that the text fits (Grad-CAM on a cross-attention layer).

    Args:
        model: any model with a matching head. visual_input: (B, 3, h, w). text_input: B texts.
        tokenized_text: `model.tokenizer(text_input, padding=True, return_tensors="pt")`. block_num: the layer.

    Returns:
        a picture's maps (1 + T, g, g) each: the first token's, the mean over the words', then each further
        token's, of a grid of g x g patches; and the matching logits (B, 2).
    """
    ids, mask = torch.as_tensor(tokenized_text.input_ids), torch.as_tensor(tokenized_text.attention_mask)
    tokens = Tokens(ids.to(model.device), mask.to(model.device).bool())
    layer = model.text_encoder.encoder.layer[block_num]

    def fits() -> torch.Tensor:
        image_embeds = model.encode_image(visual_input.to(model.device))
        logits.append(model.match_logits(TextStates(tokens), model.memorize(image_embeds)))
        return logits[-1][:, 1]

    logits: list[torch.Tensor] = []
    (maps,), _ = gradcam([layer.crossattention], fits)
    maps = patch_grid(maps * tokens.mask[:, :, None])  # (B, T, g, g)
    words = tokens.mask.sum(dim=1) - 2  # without the first token and [SEP]
    out = []
    for each, count in zip(maps, words.tolist()):
        mean = each[1 : count + 1].sum(dim=0, keepdim=True) / max(count, 1)
        out.append(torch.cat([each[:1], mean, each[1:]]))
    return out, logits[-1].detach()


# ---------------------------------------------------------------------------------------- training


class RetrievalLoss(BlipMatching):
    """Fine-tuning for retrieval."""

    config: Any
    contrastive_step: Any
    match: Any
    temperature: Any
    _picture_ids: Any

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive plus matching loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts; `image_id` (B,), integers: equal ones belong
                together; `epoch`, `iters`, `num_iters_per_epoch`.

        Returns:
            loss = loss_itc + loss_itm (nats), sims, intermediate_output.
        """
        ids = self._picture_ids(samples)
        step = self.contrastive_step(samples, ids)
        temp = self.temperature.detach()
        image_feat, text_feat = step.image_feat.detach(), step.text_feat.detach()
        if self.config.negative_all_rank and dist.is_on():
            matching, sim_i2t, sim_t2i = self._match_over_ranks(step, ids)
        else:
            sim_i2t = similarities(image_feat, text_feat) / temp
            sim_t2i = similarities(text_feat, image_feat) / temp
            same = ids[:, None] == ids[None, :]
            matching = self.match(TextStates(step.tokens), step.image_embeds, sim_i2t, sim_t2i, same)
        return LossOutput(
            sims=replace(step.contrast.sims, sim_i2t=sim_i2t, sim_t2i=sim_t2i),
            intermediate_output=step.states(matching),
            loss=step.contrast.loss + matching.loss,
            loss_itc=step.contrast.loss,
            loss_itm=matching.loss,
        )

    def _match_over_ranks(
        self, step: ContrastiveStep, ids: torch.Tensor
    ) -> tuple[Matching, torch.Tensor, torch.Tensor]:
        """Matching with hard negatives from all ranks' batches; gradients flow back to their ranks."""
        temp = self.temperature.detach()
        image_feats, text_feats = dist.all_gather(step.image_feat), dist.all_gather(step.text_feat)
        sim_i2t = similarities(step.image_feat.detach(), text_feats) / temp  # (B, W)
        sim_t2i = similarities(step.text_feat.detach(), image_feats) / temp
        same = ids[:, None] == dist.all_gather(ids)[None, :]
        everywhere = dist.all_gather_with_grad(step.image_embeds)
        texts = TextStates(Tokens(dist.all_gather(step.tokens.ids), dist.all_gather(step.tokens.mask)))
        matching = self.match(
            TextStates(step.tokens), step.image_embeds, sim_i2t, sim_t2i, same, images=everywhere, texts=texts
        )
        return matching, sim_i2t, sim_t2i


@registry.register_model("blip_retrieval")
class BlipRetrieval(RetrievalLoss, Alignment):
    """Fine-tuning for retrieval: contrast and matching; several texts of a picture are all right."""

    registered_name = "blip_retrieval"
    EMA = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    QUEUE_IDS = True
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = Rules(
        drop=("text_decoder.*", *TRAINING_STATE), resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES
    )


@registry.register_model("blip_pretrain")
class BlipPretrain(BlipMatching, Alignment):
    """Pre-training: contrast, matching and language modelling (BLIP paper, section 3.2).

    The decoder shares all of the encoder's parameters but the self-attention.
    """

    registered_name = "blip_pretrain"
    EMA = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    NEGATIVE_FLOOR = 1e-4
    RULES = Rules(drop=TRAINING_STATE, resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = RULES

    def add_decoder(self, config: BlipMatchingConfig) -> None:
        self.check_losses("itc", "itm", "lm")
        self.text_decoder = TextDecoder(config.text)
        self.share_layers()

    def share_layers(self) -> None:
        """Let the decoder use the encoder's modules, all but the self-attention."""
        encoder, decoder = self.text_encoder, self.text_decoder.bert
        decoder.embeddings = encoder.embeddings
        for own, shared in zip(decoder.encoder.layer, encoder.encoder.layer):
            own.crossattention = shared.crossattention
            own.intermediate, own.output = shared.intermediate, shared.output
        self.text_decoder.tie_weights()

    def tie_weights(self) -> None:
        self.text_decoder.tie_weights()

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive, matching and language-model loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts without the prompt's cut; `epoch`, `iters`,
                `num_iters_per_epoch`; optionally `statements` and `fits`, see `judged`.

        Returns:
            loss (nats): the sum of those that `config.losses` names, of loss_itc, loss_itm and loss_lm; sims,
            intermediate_output.
        """
        step = self.contrastive_step(samples)
        same = self.together(samples, step.image_embeds.shape[0])
        contrast = step.contrast
        matching = self.match(
            TextStates(step.tokens), step.image_embeds, contrast.negatives_i2t, contrast.negatives_t2i, same
        )
        judged_itc, judged_itm = self.judged(samples, step, matching.memory)
        losses = {"itc": contrast.loss + judged_itc, "itm": matching.loss + judged_itm}
        states = step.states(matching)
        if "lm" in self.config.losses:
            ids = step.tokens.ids.clone()
            ids[:, 0] = self.bos_id
            labels = ids.masked_fill(~step.tokens.mask, IGNORE)
            # shared cross-attention: what the matching encoder projected of the pictures serves here too
            logits = self.text_decoder(ids, mask=step.tokens.mask, memory=matching.memory)
            losses["lm"] = language_modelling_loss(logits, labels, smoothing=SMOOTHING)
            states = replace(
                states, decoder_output=DecoderOutput(loss=losses["lm"], logits=logits), decoder_labels=labels
            )
        return self.pretraining_output(losses, contrast.sims, states)

    def reset_queue_ptr(self) -> None:
        """Start writing the queue from its first place."""
        self.queue_ptr.zero_()
