"""The video transformer of ALPRO: divided space-time attention (TimeSformer; Bertasius et al. 2021, section 3).

In each block a patch first looks at the same place in the other frames, then at the other patches of its
frame. B videos, T frames, P patches per frame, D width. Tokens are ordered (row, column, frame), after one
class token. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn.transformer import Attention, Block
from lavis.nn.vit import VisionTransformer, ViTConfig


class SpaceTimeBlock(Block):
    """Attention over time, over space, and the feed-forward layer (TimeSformer paper, figure 2, "divided")."""

    def __init__(self, width: int, heads: int, hidden: int, **options: Any) -> None:
        super().__init__(width, heads, hidden, **options)
        self.temporal_norm1 = nn.LayerNorm(width, eps=self.norm1.eps)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:  # (B, 1 + P·T, D)
        token, patches = x[:, :1], x[:, 1:]
        places = patches.unflatten(1, (-1, frames)).flatten(0, 1)  # (B·P, T, D)
        found = self.drop(self.temporal_attn(self.temporal_norm1(places)))
        patches = patches + self.temporal_fc(found.view_as(patches))

        # every frame gets the class token; what the frames make of it is averaged
        images = patches.unflatten(1, (-1, frames)).transpose(1, 2)  # (B, T, P, D)
        images = torch.cat([token[:, None].expand(-1, frames, -1, -1), images], dim=2).flatten(0, 1)
        found = self.drop(self.attn(self.norm1(images))).unflatten(0, (-1, frames))  # (B, T, 1 + P, D)
        in_patches = found[:, :, 1:].transpose(1, 2).flatten(1, 2)  # (B, P·T, D)
        x = torch.cat([token + found[:, :, 0].mean(dim=1, keepdim=True), patches + in_patches], dim=1)
        return x + self.drop(self.mlp(self.norm2(x)))


class SpaceTimeTransformer(VisionTransformer):
    """Videos in, normalised states of all places and times out."""

    block = SpaceTimeBlock

    def __init__(self, config: ViTConfig, image_size: int, frames: int, checkpoint_blocks: int = 0) -> None:
        super().__init__(config, image_size, checkpoint_blocks)
        self.time_embed = nn.Parameter(torch.zeros(1, frames, config.width))

    def reset_parameters(self) -> None:
        """The image transformer's starting weights; attention over time begins without effect."""
        super().reset_parameters()
        nn.init.zeros_(self.time_embed)
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, video: torch.Tensor) -> torch.Tensor:  # (B, 3, T, h, w) -> (B, 1 + P·T, D)
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[-2:] != self.size:
            raise ValueError(
                f"video has shape {tuple(video.shape)}, but this model takes (B, 3, frames, {self.size[0]}, "
                f"{self.size[1]}); use the processor that load_model_and_preprocess returns, and unsqueeze(0) "
                "for a single video"
            )
        frames = video.shape[2]
        images = video.to(self.cls_token.dtype).transpose(1, 2).flatten(0, 1)  # (B·T, 3, h, w)
        x = self.patch_embed(images).unflatten(0, (-1, frames)) + self.pos_embed[:, 1:]  # (B, T, P, D)
        x = x + resize_times(self.time_embed, frames)[:, :, None]
        token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return self.encode(torch.cat([token, x.transpose(1, 2).flatten(1, 2)], dim=1), frames)


class TimeSformer(nn.Module):
    """A video's states, averaged over its frames.

    Args:
        config: sizes.
        image_size: height and width in pixels.
        frames: for how many frames there are time embeddings; other numbers take the nearest ones.
        checkpoint_blocks: see `VisionTransformer`.
    """

    def __init__(self, config: ViTConfig, image_size: int, frames: int, checkpoint_blocks: int = 0) -> None:
        super().__init__()
        self.model = SpaceTimeTransformer(config, image_size, frames, checkpoint_blocks)

    def reset_parameters(self) -> None:
        self.model.reset_parameters()

    def forward_features(self, video: torch.Tensor) -> torch.Tensor:
        """The same as a call, under the original's name."""
        return self(video)

    @property
    def vision_width(self) -> int:
        """Width of the states."""
        return self.model.vision_width

    def forward(self, video: torch.Tensor) -> torch.Tensor:  # (B, 3, T, h, w) -> (B, 1 + P, D)
        x = self.model(video)
        return torch.cat([x[:, :1], x[:, 1:].unflatten(1, (-1, video.shape[2])).mean(dim=2)], dim=1)


def resize_times(times: torch.Tensor, frames: int) -> torch.Tensor:
    """Time embeddings (1, T, D) for another number of frames, each the nearest old one's.

    Source: the official ALPRO loader.
    """
    if times.shape[1] == frames:
        return times
    return F.interpolate(times.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)


def resize_places(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Position embeddings (1, 1 + P, D) for another number of patches: the nearest along the list of patches.

    That is not the nearest place of the picture; checkpoints were fine-tuned from it so. Source: the official
    ALPRO loader.
    """
    return torch.cat([positions[:, :1], resize_times(positions[:, 1:], tokens - 1)], dim=1)
