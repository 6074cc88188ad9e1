"""BLIP's classifiers: a statement about two pictures (BLIP paper, section 5.4), a text about one.

B pictures (or pairs of pictures), G texts for each, R = B·G texts, T tokens, N image tokens, D width, C classes.
"""

from __future__ import annotations

from dataclasses import replace

from lavis.common.registry import registry
from lavis.models.blip import Blip
from lavis.models.checkpoints import EMA_COPIES, TRAINING_STATE, Rules
from lavis.models.classification import ClassEncoder, Classifier
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

    def batch_encoder(self) -> ClassEncoder:
        """Statements are not cut, and begin with [ENC]."""
        return replace(super().batch_encoder(), max_length=None, first=self.enc_id)


@registry.register_model("blip_classification")
class BlipClassification(Blip, Classifier):
    """Classes of texts over images, taught by EMA copies (BLIP's encoders under ALBEF's visual entailment head: ALBEF
    paper, sections 3.3 and 5). Texts keep their [CLS], as in the original, where BLIP's other heads put [ENC]."""

    registered_name = "blip_classification"
    EMA = ("visual_encoder", "text_encoder", "cls_head")
    RAMP_EPOCHS = 1
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES)
    # `cls_head_m` is not in such a file either; `reset_parameters` made it a copy of the fresh head
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, *OTHER_HEADS), resize=RESIZE, copy=EMA_COPIES, fresh=("cls_head*",)
    )
