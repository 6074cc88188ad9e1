"""ALBEF (Li et al. 2021, "Align before Fuse: Vision and Language Representation Learning with Momentum
Distillation", arXiv 2107.07651).

An image encoder (ViT) and one text transformer: its first half reads the text alone, its second half goes on
from those states and reads the image too. Here: what all heads share, features, retrieval, pre-training.
Beside it: albef_vqa, albef_reasoning.

B images, G texts per image, R = B·G texts, T tokens, M masked tokens, N image tokens, D width, E width of a
feature, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lavis.common.registry import registry
from lavis.models.alignment import ENCODERS, Alignment
from lavis.models.base import inference, own_step
from lavis.models.checkpoints import EMA_COPIES, NEW_QUEUES, TRAINING_STATE, Rules
from lavis.models.fusion import LateFusion
from lavis.models.outputs import Features, LossOutput
from lavis.models.pair_training import Objective
from lavis.models.presets import RESIZE
from lavis.models.vision_text import VisionTextConfig
from lavis.nn.language_model import LanguageModel
from lavis.nn.text import TextConfig

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


# --------------------------------------------------------------------------------------- features


@registry.register_model("albef_feature_extractor")
class AlbefFeatureExtractor(Albef, LateFusion, Alignment):
    """States and projections of images, texts, and of texts over images."""

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
                images are. Texts are not cut.
            mode: "image", "text" or "multimodal" (all three), or several of them.

        Returns:
            the fields of the mode; `multimodal_embeds` are the texts' states over their images.
        """
        modes = [mode] if isinstance(mode, str) else list(mode)
        return Features(**{key: value for m in modes for key, value in self._features(samples, m).items()})


# --------------------------------------------------------------------------------------- training


@registry.register_model("albef_retrieval")
class AlbefRetrieval(Albef, LateFusion, Alignment):
    """Fine-tuning for retrieval: contrast and matching; several texts of an image are all right."""

    registered_name = "albef_retrieval"
    EMA = ENCODERS
    OBJECTIVE = Objective(by_id=True)
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
        return self.training_loss(self.encoded(samples))


@registry.register_model("albef_pretrain")
class AlbefPretrain(Albef, LateFusion, Alignment):
    """Pre-training: contrast, matching and guessing masked tokens (ALBEF paper, sections 3.2 and 3.3)."""

    registered_name = "albef_pretrain"
    EMA = ENCODERS
    OBJECTIVE = Objective(("itc", "itm", "mlm"), masked=True)
    ENCODER = LanguageModel
    RULES = Rules(drop=(*TRAINING_STATE, TOKEN_TYPES), resize=RESIZE, copy=EMA_COPIES, make=NEW_QUEUES)
    PRETRAINED_RULES = RULES

    @own_step
    def forward(self, samples: Mapping[str, Any]) -> LossOutput:
        """Contrastive, matching and masked-language-model loss.

        Args:
            samples: `image` (B, 3, h, w); `text_input`, B texts; `epoch`, `iters`, `num_iters_per_epoch`; optionally
                `statements` and `fits`, see `PairEncoder`.

        Returns:
            loss (nats): the sum of those that `config.losses` names, of loss_itc, loss_itm and loss_mlm; sims,
            intermediate_output.
        """
        return self.training_loss(self.encoded(samples))
