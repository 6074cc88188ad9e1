"""BLIP for visual question answering (BLIP paper, section 5.3)."""

from __future__ import annotations

from typing import ClassVar

from lavis.common.registry import registry
from lavis.models.answers import Answering
from lavis.models.base import Preset
from lavis.models.blip import GS, IMAGES, OFFICIAL, TINY_TEXT, TINY_VIT, Blip, BlipConfig
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.tokenizer import ASSETS
from lavis.nn.vit import ViTConfig, interpolate_positions

QUESTIONS = {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}}


@registry.register_model("blip_vqa")
class BlipVQA(Blip, Answering):
    """BLIP for VQA: an image-grounded question encoder and an answer decoder over its states
    (BLIP paper, figure 5a)."""

    registered_name = "blip_vqa"
    RULES = Rules(drop=TRAINING_STATE)
    PRETRAINED_RULES = Rules(
        drop=(*TRAINING_STATE, "vision_proj.*", "text_proj.*", "itm_head.*"),
        resize={"visual_encoder.pos_embed": lambda t, shape: interpolate_positions(t, shape[1])},
    )
    _CONFIG = BlipConfig(image_size=480, vit=ViTConfig(drop_path=0.1), prompt="", max_txt_len=35)
    PRESETS: ClassVar[dict[str, Preset]] = {
        "vqav2": Preset(
            config=_CONFIG,
            weights=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            pretrained=GS + "BLIP/models/model_base_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on VQAv2 (validation split included)",
        ),
        "okvqa": Preset(
            config=_CONFIG,
            weights=GS + "LAVIS/models/BLIP/blip_okvqa.pth",
            pretrained=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on OK-VQA",
        ),
        "aokvqa": Preset(
            config=_CONFIG,
            weights=GS + "LAVIS/models/BLIP/blip_aokvqa.pth",
            pretrained=GS + "BLIP/models/model_base_vqa_capfilt_large.pth",
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence=OFFICIAL,
            note="ViT-B/16 at 480 px, fine-tuned on A-OKVQA",
        ),
        "tiny": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence="none needed: no weights",
            commercial=True,
            note="random starting weights, 64 px; for tests and small data",
        ),
        "tiny_easy_vqa": Preset(
            config=BlipConfig(
                image_size=64, vit=TINY_VIT, text=TINY_TEXT, prompt="", vocabulary="tiny", cover=True
            ),
            weights=str(ASSETS / "tiny_easy_vqa"),
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence="BSD-3-Clause; trained on easy-VQA (MIT)",
            commercial=True,
            note="in the package; knows easy-VQA's questions about one coloured shape",
        ),
    }
