"""BLIP's picture models on videos (BLIP paper, section 5.6): frames are encoded as pictures, their states
follow one another in one memory. No order of time is modelled.

B videos, F frames, N image tokens per frame, D width, E width of a feature.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
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
from lavis.nn.vit import VisionTransformer

FRAMES_AT_ONCE = 32  # so that long videos, many at a time, need no more memory than their states do


class FrameTransformer(VisionTransformer):
    """A picture encoder over the frames of videos."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, F, h, w) to states (B, F·N, D), frame after frame."""
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] == 0:
            raise ValueError(
                f"video has shape {tuple(video.shape)}; it must be (B, 3, frames, {self.image_size}, "
                f"{self.image_size}); unsqueeze(0) for a single video, unsqueeze(2) for pictures"
            )
        encode = super().forward
        frames = video.transpose(1, 2).flatten(0, 1)  # (B·F, 3, h, w)
        states = torch.cat([encode(part) for part in frames.split(FRAMES_AT_ONCE)])  # (B·F, N, D)
        return states.unflatten(0, (len(video), -1)).flatten(1, 2)


class SeesVideo:
    """Makes a picture model see videos; comes before it among the bases. Entries of files are the same."""

    MEDIA = "video"

    def image_encoder(self, config: Any) -> nn.Module:
        return FrameTransformer(config.vit, config.image_size, config.grad_checkpointing)


@registry.register_model("blip_video_caption")
class BlipVideoCaption(SeesVideo, BlipCaption):
    """Captions videos, zero-shot from a captioner of pictures, or fine-tuned. Not in the paper, which has questions and
    retrieval on frames (section 5.6); as `BlipCaption`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_caption"
    RULES = replace(BlipCaption.RULES, resize=RESIZE)


@registry.register_model("blip_video_qa")
class BlipVideoQA(SeesVideo, Blip, Answering):
    """Answers questions about videos, zero-shot from a visual question answering model, or fine-tuned
    (BLIP paper, section 5.6 and table 11: 16 frames). As `BlipVQA`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_qa"
    RULES = replace(BlipVQA.RULES, resize=RESIZE)
    PRETRAINED_RULES = BlipVQA.PRETRAINED_RULES


@registry.register_model("blip_video_retrieval")
class BlipVideoRetrieval(SeesVideo, Blip, EarlyFusion, Alignment):
    """Compares videos and texts, zero-shot from a COCO retrieval model, or fine-tuned (BLIP paper, section 5.6
    and table 10: 8 frames). As `BlipRetrieval`, with `video` (B, 3, F, h, w) in samples."""

    registered_name = "blip_video_retrieval"
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
class BlipVideoDialogue(SeesVideo, BlipDialogue):
    """Answers questions of a dialogue about a video (AVSD). As `BlipDialogue`, with `video` (B, 3, F, h, w) in
    samples; writes its answers, because AVSD has no candidates (`answering: rank` where there are some)."""

    registered_name = "blip_video_dialogue"
