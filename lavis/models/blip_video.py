"""BLIP's networks on videos (BLIP paper, section 5.6): with `MEDIA` "video" they encode frames as images, and the
states of frames follow one another in one memory. No order of time is modelled. Entries of files are the same.

B videos, F frames, N image tokens per frame, D width, E width of a feature.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models.alignment import Alignment
from lavis.models.answers import Answering
from lavis.models.blip import Blip, BlipCaption
from lavis.models.blip_dialogue import BlipDialogue
from lavis.models.blip_matching import BlipRetrieval
from lavis.models.blip_vqa import BlipVQA
from lavis.models.fusion import EarlyFusion
from lavis.models.presets import RESIZE
from lavis.nn.frames import FrameTransformer


@registry.register_model("blip_video_caption")
class BlipVideoCaption(BlipCaption):
    """Captions videos, zero-shot from a captioner of pictures, or fine-tuned. Not in the paper, which has questions and
    retrieval on frames (section 5.6); as `BlipCaption`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_caption"
    MEDIA = "video"
    RULES = replace(BlipCaption.RULES, resize=RESIZE)


@registry.register_model("blip_video_qa")
class BlipVideoQA(Blip, Answering):
    """Answers questions about videos, zero-shot from a visual question answering model, or fine-tuned
    (BLIP paper, section 5.6 and table 11: 16 frames). As `BlipVQA`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_qa"
    MEDIA = "video"
    RULES = replace(BlipVQA.RULES, resize=RESIZE)
    PRETRAINED_RULES = BlipVQA.PRETRAINED_RULES


@registry.register_model("blip_video_retrieval")
class BlipVideoRetrieval(Blip, EarlyFusion, Alignment):
    """Compares videos and texts, zero-shot from a COCO retrieval model, or fine-tuned (BLIP paper, section 5.6
    and table 10: 8 frames). As `BlipRetrieval`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_retrieval"
    MEDIA = "video"
    EMA, OBJECTIVE = BlipRetrieval.EMA, BlipRetrieval.OBJECTIVE
    RULES = replace(BlipRetrieval.RULES, resize=RESIZE)
    PRETRAINED_RULES = BlipRetrieval.PRETRAINED_RULES
    forward = BlipRetrieval.forward

    def image_feature(self, states: torch.Tensor, *, ema: bool = False) -> torch.Tensor:
        """Mean over frames of the projected class tokens, length 1: (B, E)."""
        encoder = self.visual_encoder
        assert isinstance(encoder, FrameTransformer)
        tokens = encoder.pos_embed.shape[1]  # of a frame
        frames = self.part("vision_proj", ema)(states[:, ::tokens])  # (B, F, E)
        return F.normalize(frames.mean(dim=1), dim=-1)


@registry.register_model("blip_video_dialogue")
class BlipVideoDialogue(BlipDialogue):
    """Answers questions of a dialogue about a video (AVSD). As `BlipDialogue`, with `video` (B, 3, F, h, w) in
    samples; writes its answers, because AVSD has no candidates (`answering: rank` where there are some)."""

    registered_name = "blip_video_dialogue"
    MEDIA = "video"
