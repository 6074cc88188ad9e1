"""ALBEF (Li et al. 2021, "Align before Fuse: Vision and Language Representation Learning with Momentum
Distillation", arXiv 2107.07651).

A picture encoder (ViT) and one text transformer: its first half reads the text alone, its second half goes on
from those states and reads the picture too. Here: what all heads share, features, retrieval, pre-training.
Beside it: albef_vqa, albef_reasoning.

B pictures, G texts per picture, R = B·G texts, T tokens, M masked tokens, N image tokens, D width, E width of a
feature, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lavis.common.registry import registry
from lavis.models.alignment import Alignment, ContrastiveStep, TextStates
from lavis.models.base import inference, own_step
from lavis.models.checkpoints import EMA_COPIES, NEW_QUEUES, TRAINING_STATE, Rules
from lavis.models.outputs import Features, LossOutput
from lavis.models.presets import RESIZE
from lavis.models.tokenizer import Tokens
from lavis.models.vision_text import VisionTextConfig
from lavis.nn.language_model import LanguageModel
from lavis.nn.losses import IGNORE, mask_tokens, masked_language_modelling_loss
from lavis.nn.text import Memory, TextConfig, TextTransformer

# --------------------------------------------------------------------------------- configuration

ALBEF_TEXT = TextConfig(vocab_size=30522, cross_from=6)


@dataclass(frozen=True)
class AlbefConfig(VisionTextConfig):
    """
    Attributes:
        use_distill: whether the EMA's opinion counts in the losses.
    """

    text: TextConfig = ALBEF_TEXT
    use_distill: bool = True


@dataclass(frozen=True)
class AlbefMatchingConfig(AlbefConfig):
    """
    Attributes:
        embed_dim: width of the projected features.
        queue_size: features of the EMA that are kept as negatives; 0: none.
        mlm_mask_prob: share of a text's tokens to be guessed in pre-training.
        losses: what pre-training trains on: contrast ("itc"), matching ("itm"), masked words ("mlm").
    """

    max_txt_len: int = 30
    embed_dim: int = 256
    queue_size: int = 65536
    mlm_mask_prob: float = 0.15
    losses: tuple[str, ...] = ("itc", "itm", "mlm")


PRETRAINED = "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/ALBEF.pth"
# The files of ALBEF's authors have token-type embeddings; the models of this family never had, and their numbers
# were made without.
TOKEN_TYPES = "*.token_type_embeddings.weight"
# How the fine-tuned models' entries are called in a pre-trained file, and what of it they don't use.
BARE_TEXT = ((r"^(text_encoder(?:_m)?)\.bert\.", r"\1."),)
PRETRAINING_ONLY = (*TRAINING_STATE, TOKEN_TYPES, "text_encoder.cls.*")


# ------------------------------------------------------------------------------------------ base


class Albef:
    """What ALBEF's heads share: every text begins with [CLS], read alone, over an image, or written. Comes before the
    network among the bases."""

    START_TOKENS = ("[CLS]", "[CLS]")


class AlbefAlignment(Albef):
    """A text encoder that goes on from a text's own states when it reads a picture (ALBEF paper, section 3.1).

    ENCODER: `LanguageModel` where the text encoder also guesses masked tokens, or a file's encoder could.
    """

    ENCODER: ClassVar[type[TextTransformer] | type[LanguageModel]] = TextTransformer

    part: Any
    text_encoder: Any
    config: Any

    def text_reader(self, config: AlbefMatchingConfig) -> TextTransformer | LanguageModel:
        return self.ENCODER(config.text)

    def bert(self, ema: bool = False) -> TextTransformer:
        encoder = self.part("text_encoder", ema)
        return encoder.bert if isinstance(encoder, LanguageModel) else encoder

    def tie_weights(self) -> None:
        for encoder in (self.text_encoder, getattr(self, "text_encoder_m", None)):
            if isinstance(encoder, LanguageModel):
                encoder.tie_weights()

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        return self.bert(ema)(tokens.ids, mask=tokens.mask, last=self.config.text.cross_from)

    def memorize(self, image_embeds: torch.Tensor, *, ema: bool = False) -> Memory:
        return self.bert(ema).project_memory(image_embeds)

    def fuse(
        self, text: TextStates, memory: Memory, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        assert text.states is not None
        first, mask = self.config.text.cross_from, text.tokens.mask
        return self.bert(ema).run(text.states, mask=mask, memory=memory, first=first, only_first=only_first)


# --------------------------------------------------------------------------------------- features


@registry.register_model("albef_feature_extractor")
class AlbefFeatureExtractor(AlbefAlignment, Alignment):
    """States and projections of pictures, texts, and of texts over pictures."""

    registered_name = "albef_feature_extractor"
    MATCHES = False
    match_texts = explain_text = None  # type: ignore[assignment]  # for want of that head
    ENCODER = LanguageModel
    RULES = Rules(drop=(*TRAINING_STATE, TOKEN_TYPES, "itm_head.*"), resize=RESIZE)
    PRETRAINED_RULES = RULES

    @inference
    def extract_features(
        self, samples: Mapping[str, Any], mode: str | Sequence[str] = "multimodal"
    ) -> Features:
        """States and features.

        Args:
            samples: `image` (B, 3, h, w) unless only texts are asked for; `text_input`, B·G texts, unless only
                pictures are. Texts are not cut.
            mode: "image", "text" or "multimodal" (all three), or several of them.

        Returns:
            the fields of the mode; `multimodal_embeds` are the texts' states over their pictures.
        """
        modes = [mode] if isinstance(mode, str) else list(mode)
        return Features(**{key: value for m in modes for key, value in self._features(samples, m).items()})


# --------------------------------------------------------------------------------------- training


@registry.register_model("albef_retrieval")
class AlbefRetrieval(AlbefAlignment, Alignment):
    """Fine-tuning for retrieval: contrast and matching; several texts of a picture are all right."""

    registered_name = "albef_retrieval"
    EMA = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    QUEUE_IDS = True
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = Rules(
        rename=BARE_TEXT, drop=PRETRAINING_ONLY, resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES
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
        ids = self._picture_ids(samples)
        step = self.contrastive_step(samples, ids, distill=self.config.use_distill)
        contrast, same = step.contrast, ids[:, None] == ids[None, :]
        text = TextStates(step.tokens, step.text_embeds)
        matching = self.match(text, step.image_embeds, contrast.negatives_i2t, contrast.negatives_t2i, same)
        return LossOutput(
            sims=contrast.sims,
            intermediate_output=step.states(matching),
            loss=contrast.loss + matching.loss,
            loss_itc=contrast.loss,
            loss_itm=matching.loss,
        )


@registry.register_model("albef_pretrain")
class AlbefPretrain(AlbefAlignment, Alignment):
    """Pre-training: contrast, matching and guessing masked tokens (ALBEF paper, sections 3.2 and 3.3)."""

    registered_name = "albef_pretrain"
    EMA = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    ENCODER = LanguageModel
    RULES = Rules(drop=(*TRAINING_STATE, TOKEN_TYPES), resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = RULES

    def __init__(self, config: AlbefMatchingConfig) -> None:
        super().__init__(config)
        self.check_losses("itc", "itm", "mlm")

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive, matching and masked-language-model loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts; `epoch`, `iters`, `num_iters_per_epoch`; optionally
                `statements` and `fits`, see `judged`.

        Returns:
            loss (nats): the sum of those that `config.losses` names, of loss_itc, loss_itm and loss_mlm; sims,
            intermediate_output.
        """
        step = self.contrastive_step(samples, distill=self.config.use_distill)
        contrast = step.contrast
        same = self.together(samples, step.image_embeds.shape[0])
        text = TextStates(step.tokens, step.text_embeds)
        # own pairs go before the softmax: beside a near-perfect one all others would round to 0
        i2t, t2i = (s.masked_fill(same, -torch.inf) for s in (contrast.negatives_i2t, contrast.negatives_t2i))
        matching = self.match(text, step.image_embeds, i2t, t2i, same)
        judged_itc, judged_itm = self.judged(samples, step, matching.memory)
        losses = {"itc": contrast.loss + judged_itc, "itm": matching.loss + judged_itm}
        if "mlm" in self.config.losses:
            alpha = self.alpha(samples) if self.config.use_distill else 0.0
            # what the matching read of the pictures serves the guessing too
            losses["mlm"] = self._guess(step, matching.memory, alpha)
        return self.pretraining_output(losses, contrast.sims, step.states(matching))

    def _guess(self, step: ContrastiveStep, memory: Memory, alpha: torch.Tensor | float) -> torch.Tensor:
        """Loss of guessing masked tokens of the texts over their pictures; the EMA's guesses weigh `alpha`."""
        ids, labels = mask_tokens(
            step.tokens.ids,
            chance=self.config.mlm_mask_prob,
            mask_id=self.tokenizer.mask_id,
            never=(self.tokenizer.pad_id, self.tokenizer.cls_id),
            vocab_size=self.config.text.vocab_size,
        )
        labels = labels.flatten()
        masked = (labels != IGNORE).nonzero().squeeze(1)  # (M,)

        def guesses(memory: Memory, ema: bool) -> torch.Tensor:  # (M, V)
            states = self.bert(ema)(ids, mask=step.tokens.mask, memory=memory)
            return self.part("text_encoder", ema).cls(states.flatten(0, 1)[masked])

        with torch.no_grad():
            opinion = guesses(self.memorize(step.image_embeds_m, ema=True), ema=True)
        return masked_language_modelling_loss(guesses(memory, ema=False), opinion, labels[masked], alpha)
