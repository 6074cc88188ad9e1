"""BLIP for visual question answering (BLIP paper, section 5.3)."""

from __future__ import annotations

from lavis.common.registry import registry
from lavis.models.answers import Answering
from lavis.models.blip import Blip
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.presets import RESIZE


@registry.register_model("blip_vqa")
class BlipVQA(Blip, Answering):
    """BLIP for VQA: an image-grounded question encoder and an answer decoder over its states
    (BLIP paper, figure 5a)."""

    registered_name = "blip_vqa"
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, "vision_proj.*", "text_proj.*", "itm_head.*"),
        resize=RESIZE,
    )
