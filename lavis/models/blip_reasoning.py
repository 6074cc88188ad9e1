"""BLIP's classifiers: a statement about two pictures (BLIP paper, section 5.4), a text about one.

B pictures (or pairs of pictures), G texts for each, R = B·G texts, T tokens, N image tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from lavis.common.registry import registry
from lavis.models.base import Preset
from lavis.models.blip import SHAPES, Blip
from lavis.models.checkpoints import TRAINING_STATE, TWIN_COPIES, Rules
from lavis.models.classification import Classifier, ClassifierConfig
from lavis.models.presets import CAPTION, GS, IMAGES, OFFICIAL, RESIZE, TINY, TINY_TEXT, for_shapes, untrained
from lavis.nn.text import TextConfig, TextTransformer
from lavis.nn.vit import ViTConfig

PRETRAINED = GS + "BLIP/models/model_base_capfilt_large.pth"
OTHER_HEADS = ("text_decoder.*", "vision_proj.*", "text_proj.*", "itm_head.*")
_TINY = ClassifierConfig(**TINY)
_TINY_PAIRS = untrained(
    replace(_TINY, text=replace(TINY_TEXT, memories="twin"), num_classes=2), IMAGES, CAPTION
)
_TINY_CLASSES = untrained(replace(_TINY, num_classes=3), IMAGES, CAPTION)


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
    PRESETS: ClassVar[dict[str, Preset]] = {
        "nlvr": Preset(
            config=ClassifierConfig(
                # what the published weights were trained with; the original library's preset left it out
                vit=ViTConfig(drop_path=0.1),
                text=TextConfig(memories="twin"),
                num_classes=2,
            ),
            weights=GS + "BLIP/models/model_base_nlvr.pth",
            pretrained=PRETRAINED,
            vis_processor=IMAGES,
            text_processor=CAPTION,
            licence=OFFICIAL,
            note="ViT-B/16 at 384 px, fine-tuned on NLVR2",
        ),
        "tiny": _TINY_PAIRS,
        "tiny_shapes": for_shapes(_TINY_PAIRS, SHAPES),
    }

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.text_encoder = TextTransformer(config.text)
        self.add_head(config.num_classes)

    def fused(self, samples: Mapping[str, Any], *, twin: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """States of statements over two pictures each, and the pictures' states.

        Args:
            samples: `image0`, `image1` (B, 3, h, w), the left and the right pictures; `text_input`, B·G
                statements, which are not cut.
            twin: see `Classifier.fused`.

        Returns:
            (R, T, D) and (2, B, N, D).
        """
        left, right = self._left_and_right(samples, twin)
        tokens = self._tokens(samples, len(left))
        tokens.ids[:, 0] = self.enc_id
        encoder = self.part("text_encoder", twin)
        memory = encoder.project_memory(left, second=right)
        return encoder(tokens.ids, mask=tokens.mask, memory=memory), torch.stack([left, right])


@registry.register_model("blip_classification")
class BlipClassification(Blip, Classifier):
    """Classes of texts over pictures, taught by momentum twins (BLIP's encoders under ALBEF's visual
    entailment head: ALBEF paper, sections 3.3 and 5)."""

    registered_name = "blip_classification"
    TWINS = ("visual_encoder", "text_encoder", "cls_head")
    RAMP_EPOCHS = 1
    RULES = Rules(drop=TRAINING_STATE, copy=TWIN_COPIES)
    # `cls_head_m` is not in such a file either; `reset_parameters` made it a copy of the fresh head
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, *OTHER_HEADS), resize=RESIZE, copy=TWIN_COPIES, fresh=("cls_head*",)
    )
    PRESETS: ClassVar[dict[str, Preset]] = {
        "base": Preset(
            config=ClassifierConfig(),
            # the original names a captioner's file here, which has no text encoder
            pretrained=PRETRAINED,
            vis_processor=IMAGES,
            text_processor=CAPTION,
            licence=OFFICIAL,
            note="ViT-B/16 at 384 px, pre-trained; to be fine-tuned, num_classes is to be given",
            default_for=("classification",),
        ),
        "tiny": _TINY_CLASSES,
        "tiny_shapes": replace(for_shapes(_TINY_CLASSES, SHAPES), default_for=("classification",)),
    }

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__(config)
        self.text_encoder = TextTransformer(config.text)
        self.add_head(config.num_classes)
