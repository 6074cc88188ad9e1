"""BLIP's contrast and matching heads: features, scores, retrieval, pre-training (BLIP paper, 3.2 and 5.1).

B images, G texts per image, R = B·G texts, T tokens, N image tokens, D width, E width of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lavis.common.gradcam import gradcam, patch_grid
from lavis.common.registry import registry
from lavis.models.alignment import ENCODERS, Alignment
from lavis.models.base import finite_results, inference, own_step
from lavis.models.blip import Blip, BlipConfig
from lavis.models.checkpoints import EMA_COPIES, NEW_QUEUES, TRAINING_STATE, TRANSFORMERS_BLIP, Rules
from lavis.models.fusion import EarlyFusion, TextStates
from lavis.models.outputs import Features, LossOutput
from lavis.models.pair_training import Objective
from lavis.models.presets import RESIZE
from lavis.models.samples import media_of, texts_of
from lavis.models.tokenizer import Encoding, Tokens
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import similarities


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


# --------------------------------------------------------------------------------------- features


@registry.register_model("blip_feature_extractor")
class BlipFeatureExtractor(Blip, EarlyFusion, Alignment):
    """States and projections of images, texts, and of texts over images."""

    registered_name = "blip_feature_extractor"
    MATCHES = False
    match_texts = explain_text = None  # type: ignore[assignment]  # for want of that head
    FOREIGN_RULES = (replace(TRANSFORMERS_BLIP, drop=("itm_head.*",), resize=RESIZE),)
    RULES = Rules(drop=(*TRAINING_STATE, "text_decoder.*", "itm_head.*"), resize=RESIZE)
    PRETRAINED_RULES = RULES

    @inference
    def extract_features(self, samples: Mapping[str, Any], mode: str = "multimodal") -> Features:
        """Features of images and texts.

        Args:
            samples: `image` (B, 3, h, w) and `text_input`, B·G texts; "image" and "text" need only one.
            mode: "image": image_embeds (B, N, D), image_embeds_proj (B, N, E). "text": text_embeds (R, T, D),
                text_embeds_proj (R, T, E). "multimodal": image_embeds and multimodal_embeds (R, T, D), the
                texts' states over their images. Projections have length 1; token 0 stands for the whole.

        Returns:
            the fields of the mode. Texts are not cut.
        """
        return self._features(samples, mode)


# --------------------------------------------------------------------------------------- matching


@registry.register_model("blip_image_text_matching")
class BlipITM(Blip, EarlyFusion, Alignment):
    """How well texts fit images."""

    registered_name = "blip_image_text_matching"
    TEMPERATURE = False
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(drop=(*TRAINING_STATE, "text_decoder.*"), resize=RESIZE)

    def forward(self, samples: Mapping[str, Any], match_head: str = "itm") -> torch.Tensor:
        """Compare images and texts.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B·G texts, an image's next to one another.
            match_head: "itm": logits (B·G, 2) of "does not fit" and "fits" for each text with its image;
                "itc": cosine similarities (B, B·G) of every image with every text.

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
        """Probability that each text fits its image (B·G,), and their cosine similarity (B·G,)."""
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
        an image's maps (1 + T, g, g) each: the first token's, the mean over the words', then each further
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


@registry.register_model("blip_retrieval")
class BlipRetrieval(Blip, EarlyFusion, Alignment):
    """Fine-tuning for retrieval: contrast and matching; several texts of an image are all right."""

    registered_name = "blip_retrieval"
    EMA = ENCODERS
    OBJECTIVE = Objective(by_id=True, hard_by="features")
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = Rules(
        drop=("text_decoder.*", *TRAINING_STATE), resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES
    )

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive plus matching loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts; `image_id` (B,), integers: equal ones belong
                together; `epoch`, `iters`, `num_iters_per_epoch`.

        Returns:
            loss = loss_itc + loss_itm (nats), sims, intermediate_output.
        """
        return self.training_loss(self.encoded(samples))


@registry.register_model("blip_pretrain")
class BlipPretrain(Blip, EarlyFusion, Alignment):
    """Pre-training: contrast, matching and language modelling (BLIP paper, section 3.2).

    The decoder shares all of the encoder's parameters but the self-attention.
    """

    registered_name = "blip_pretrain"
    EMA = ENCODERS
    OBJECTIVE = Objective(("itc", "itm", "lm"), floor=1e-4)
    RULES = Rules(drop=TRAINING_STATE, resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = RULES

    def add_decoder(self, config: BlipMatchingConfig) -> None:
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

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive, matching and language-model loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts without the prompt's cut; `epoch`, `iters`,
                `num_iters_per_epoch`; optionally `statements` and `fits`, see `PairEncoder`.

        Returns:
            loss (nats): the sum of those that `config.losses` names, of loss_itc, loss_itm and loss_lm; sims,
            intermediate_output.
        """
        return self.training_loss(self.encoded(samples))

    def reset_queue_ptr(self) -> None:
        """Start writing the queue from its first place."""
        self.queue_ptr.zero_()
