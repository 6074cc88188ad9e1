"""An image transformer over the frames of videos (BLIP paper, section 5.6).

B videos, F frames, N image tokens per frame, D width.
"""

from __future__ import annotations

import torch

from lavis.nn.vit import VisionTransformer

FRAMES_AT_ONCE = 32  # so that long videos, many at a time, need no more memory than their states do


class FrameTransformer(VisionTransformer):
    """An image encoder over the frames of videos: frames are encoded as images, their states follow one another."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Frames (B, 3, F, h, w) to states (B, F·N, D), frame after frame."""
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[2] == 0:
            raise ValueError(
                f"video has shape {tuple(video.shape)}; it must be (B, 3, frames, {self.image_size}, "
                f"{self.image_size}); unsqueeze(0) for a single video, unsqueeze(2) for images"
            )
        encode = super().forward
        frames = video.transpose(1, 2).flatten(0, 1)  # (B·F, 3, h, w)
        states = torch.cat([encode(part) for part in frames.split(FRAMES_AT_ONCE)])  # (B·F, N, D)
        return states.unflatten(0, (len(video), -1)).flatten(1, 2)
