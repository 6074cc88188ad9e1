"""BLIP's classifiers: a statement about two pictures (BLIP paper, section 5.4), a text about one.

B pictures (or pairs of pictures), G texts for each, R = B·G texts, T tokens, N image tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lavis.common.registry import registry
from lavis.models.blip import Blip
from lavis.models.checkpoints import EMA_COPIES, TRAINING_STATE, Rules
from lavis.models.classification import Classifier
from lavis.models.presets import RESIZE

OTHER_HEADS = ("text_decoder.*", "vision_proj.*", "text_proj.*", "itm_head.*")


@registry.register_model("blip_nlvr")
class BlipNLVR(Blip, Classifier):
    """Is a statement true of two pictures? In every layer of the text encoder two cross-attentions, one per
    picture, averaged in the first half of the layers, merged by a linear layer in the second (BLIP paper,
    section 5.4 and figure 5b)."""

    registered_name = "blip_nlvr"
    PAIRS = True
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, *OTHER_HEADS, "*.crossattention.self.*", "*.crossattention.output.dense.*"),
        resize=RESIZE,
        copy=(
            (r"\.crossattention\.self[01]\.", ".crossattention.self."),
            (r"\.crossattention\.output\.dense[01]\.", ".crossattention.output.dense."),
        ),
        fresh=("cls_head.*", "*.merge_layer.*"),
    )

    def fused(self, samples: Mapping[str, Any], *, ema: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """States of statements over two pictures each, and the pictures' states.

        Args:
            samples: `image0`, `image1` (B, 3, h, w), the left and the right pictures; `text_input`, B·G
                statements, which are not cut.
            ema: see `Classifier.fused`.

        Returns:
            (R, T, D) and (2, B, N, D).
        """
        left, right = self._left_and_right(samples, ema)
        tokens = self._tokens(samples, len(left))
        tokens.ids[:, 0] = self.enc_id
        encoder = self.part("text_encoder", ema)
        memory = encoder.project_memory(left, second=right)
        return encoder(tokens.ids, mask=tokens.mask, memory=memory), torch.stack([left, right])


@registry.register_model("blip_classification")
class BlipClassification(Blip, Classifier):
    """Classes of texts over pictures, taught by EMA copies (BLIP's encoders under ALBEF's visual
    entailment head: ALBEF paper, sections 3.3 and 5)."""

    registered_name = "blip_classification"
    EMA = ("visual_encoder", "text_encoder", "cls_head")
    RAMP_EPOCHS = 1
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES)
    # `cls_head_m` is not in such a file either; `reset_parameters` made it a copy of the fresh head
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, *OTHER_HEADS), resize=RESIZE, copy=EMA_COPIES, fresh=("cls_head*",)
    )
