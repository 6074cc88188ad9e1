"""ALBEF's classifiers: visual entailment, and statements about two pictures (ALBEF paper, section 5).

B pictures (or pairs of pictures), G texts for each, R = B·G texts, T tokens, N image tokens, D width.
"""

from __future__ import annotations

from dataclasses import replace

from lavis.common.registry import registry
from lavis.models.albef import ALBEF_TEXT, BARE_TEXT, PRETRAINING_ONLY, Albef
from lavis.models.checkpoints import EMA_COPIES, TRAINING_STATE, Rules
from lavis.models.classification import Classifier
from lavis.models.presets import RESIZE

OTHER_HEADS = ("vision_proj.*", "text_proj.*", "itm_head.*")
HEADS = ("cls_head.*", "cls_head_m.*")
# Twice as many fusion layers as elsewhere: one for each picture, in turn.
PAIR_TEXT = replace(ALBEF_TEXT, depth=18, memories="alternate")


@registry.register_model("albef_classification")
class AlbefClassification(Albef, Classifier):
    """Does a text follow from a picture, contradict it, or neither (SNLI-VE)? Or any other classes."""

    registered_name = "albef_classification"
    EMA = ("visual_encoder", "text_encoder", "cls_head")
    RAMP_EPOCHS = 1
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES)
    PRETRAINED_RULES = Rules(
        rename=BARE_TEXT,
        drop=(*PRETRAINING_ONLY, *OTHER_HEADS),
        resize=RESIZE,
        copy=EMA_COPIES,
        fresh=HEADS,
    )


@registry.register_model("albef_nlvr")
class AlbefNLVR(Albef, Classifier):
    """Is a statement true of two pictures? The fusion layers read the left and the right picture in turn;
    neighbours share their projections of the pictures.

    The EMA's opinion is made by the text encoder itself over the EMA's images, as the checkpoints were
    trained; the EMA of the text encoder only follows.
    """

    registered_name = "albef_nlvr"
    PAIRS = True
    TEXT_EMA = False
    EMA = ("visual_encoder", "text_encoder", "cls_head")
    RULES = Rules(drop=TRAINING_STATE, copy=EMA_COPIES)
    PRETRAINED_RULES = Rules(
        rename=BARE_TEXT,
        drop=(*PRETRAINING_ONLY, *OTHER_HEADS, "ta_head.*"),
        resize=RESIZE,
        copy=EMA_COPIES,
        # a file that was pre-trained with one picture has 12 layers
        fresh=(*HEADS, "text_encoder*.encoder.layer.1[2-7].*"),
    )
