"""BLIP for visual question answering (BLIP paper, section 5.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from lavis.common.registry import registry
from lavis.models.answers import Answering
from lavis.models.base import Preset
from lavis.models.blip import SHAPES, Blip, BlipConfig
from lavis.models.checkpoints import TRAINING_STATE, Rules
from lavis.models.presets import GS, IMAGES, OFFICIAL, QUESTIONS, RESIZE, TINY, for_shapes, untrained
from lavis.models.tokenizer import ASSETS
from lavis.nn.vit import ViTConfig

_TINY = untrained(BlipConfig(**TINY, prompt=""), IMAGES, QUESTIONS)


def _official(weights: str, pretrained: str, data: str) -> Preset:
    return Preset(
        config=BlipConfig(image_size=480, vit=ViTConfig(drop_path=0.1), prompt="", max_txt_len=35),
        weights=GS + weights,
        pretrained=GS + pretrained,
        vis_processor=IMAGES,
        text_processor=QUESTIONS,
        licence=OFFICIAL,
        note=f"ViT-B/16 at 480 px, fine-tuned on {data}",
    )


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
    PRESETS: ClassVar[dict[str, Preset]] = {
        "vqav2": replace(
            _official(
                "BLIP/models/model_base_vqa_capfilt_large.pth",
                "BLIP/models/model_base_capfilt_large.pth",
                "VQAv2 (validation split included)",
            ),
            default_for=("ask", "vqa"),
            download_gb=1.4,
        ),
        "okvqa": _official(
            "LAVIS/models/BLIP/blip_okvqa.pth", "BLIP/models/model_base_vqa_capfilt_large.pth", "OK-VQA"
        ),
        "aokvqa": _official(
            "LAVIS/models/BLIP/blip_aokvqa.pth", "BLIP/models/model_base_vqa_capfilt_large.pth", "A-OKVQA"
        ),
        "tiny": _TINY,
        "tiny_shapes": replace(
            for_shapes(_TINY, SHAPES),
            weights=str(ASSETS / "blip_vqa_shapes"),
            note="in the package; knows questions about drawings of coloured shapes",
            default_for=("ask", "vqa"),
        ),
        "tiny_easy_vqa": Preset(
            config=_TINY.config,
            weights=str(ASSETS / "tiny_easy_vqa"),
            vis_processor=IMAGES,
            text_processor=QUESTIONS,
            licence="BSD-3-Clause; trained on easy-VQA (MIT)",
            commercial=True,
            note="in the package; knows easy-VQA's questions about one coloured shape",
        ),
    }
