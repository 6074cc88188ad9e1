"""The one image transformer (ViT; Dosovitskiy et al. 2021, section 3.1), in BLIP's and ALBEF's form.

B pictures, N tokens (1 class token + patches), D width, H heads. Parameter names are those of the
official checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lavis.nn.attention import Reader, split_heads
from lavis.nn.linear import Linear, gelu
from lavis.nn.slices import in_slices


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of the image transformer; the defaults are ViT-B/16."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16  # pixels
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # of the last block; rises linearly from 0 in the first
    layer_norm_eps: float = 1e-6
    init_std: float = 0.02
    sincos: float = 0.0  # if positive, positions start as sines and cosines of this standard deviation


VIT_BASE = ViTConfig()
# The original forces 0.1 for ViT-L whatever its configuration says.
VIT_LARGE = ViTConfig(width=1024, depth=24, heads=16, drop_path=0.1)


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016): zero a residual branch, scale the kept ones."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=torch.float32) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class SelfAttention(nn.Module, Reader):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(self.read(q, split_heads(k, self.heads), split_heads(v, self.heads)))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(gelu(self.fc1, x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = SelfAttention(config.width, config.heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def sincos_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of a grid's rows and columns: (side², width), of standard deviation about 0.7.

    As in MoCo v3 and MAE (Chen et al. 2021, He et al. 2021), but with wavelengths from 6 patches to 6 grids:
    longer ones would be the same everywhere.

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"the width is {width}; sines and cosines of two directions need a multiple of 4")
    frequencies = side ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class PatchEmbed(nn.Module):
    """Cuts a picture into patches and projects each."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 3, h, w) -> (B, patches, D)
        # one product of many, and all that follows stands on it: under autocast it keeps the precision of its weights
        with torch.autocast(image.device.type, enabled=False):
            dtype = next(self.proj.parameters()).dtype
            return self.proj(image.to(dtype)).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """Pictures in, normalised token states out: class token first, then patches row by row.

    Args:
        config: sizes.
        image_size: height and width in pixels that the position embeddings are made for.
        checkpoint_blocks: how many of the last blocks recompute their activations in the backward
            pass instead of keeping them (less memory, more time).
    """

    block: ClassVar[type[Block]] = Block

    def __init__(self, config: ViTConfig, image_size: int, checkpoint_blocks: int = 0) -> None:
        super().__init__()
        if image_size % config.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {config.patch_size}"
            )
        self.image_size = image_size
        self.init_std, self.sincos = config.init_std, config.sincos
        self.checkpoint_from = config.depth - checkpoint_blocks
        patches = (image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, config.width))
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(
            self.block(config, drop_path=config.drop_path * i / last) for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def reset_parameters(self) -> None:
        """Starting weights: truncated normal of `init_std`, zero biases; positions see `sincos`."""
        if self.sincos:
            side = math.isqrt(self.pos_embed.shape[1] - 1)
            start = sincos_positions(side, self.pos_embed.shape[2]) * (self.sincos / 0.5**0.5)
            with torch.no_grad():
                self.pos_embed.copy_(F.pad(start, (0, 0, 1, 0))[None])  # 0 for the class token
        else:
            nn.init.trunc_normal_(self.pos_embed, std=self.init_std)
        nn.init.trunc_normal_(self.cls_token, std=self.init_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.init_std)
                nn.init.zeros_(module.bias)

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        """The same as a call, under the original's name."""
        return self(image)

    @property
    def vision_width(self) -> int:
        """Width of the states."""
        return self.norm.normalized_shape[0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 3, h, w) -> (B, N, D)
        if image.ndim != 4 or image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"image has shape {tuple(image.shape)}, but this model takes (B, 3, {self.image_size}, "
                f"{self.image_size}); use the processor that load_model_and_preprocess returns, and "
                "unsqueeze(0) for a single picture"
            )
        x = self.patch_embed(image.to(self.cls_token.dtype))
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.encode(x)

    def encode(self, x: torch.Tensor, *more: Any) -> torch.Tensor:
        """All blocks over embedded tokens (B, N, D), each given `more`, then the last norm."""
        return in_slices(lambda part: self._encode(part, *more), x, self.blocks)

    def _encode(self, x: torch.Tensor, *more: Any) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            if i >= self.checkpoint_from and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, *more, use_reentrant=False)
            else:
                x = block(x, *more)
        return self.norm(x)


def interpolate_positions(positions: torch.Tensor, tokens: int) -> torch.Tensor:
    """Resize learned position embeddings to another number of patches (bicubic; class token kept).

    Args:
        positions: (1, 1 + g·g, D).
        tokens: 1 + the wanted number of patches, a square.

    Returns:
        (1, tokens, D). Source: the official ALBEF and BLIP loaders.
    """
    old = round((positions.shape[1] - 1) ** 0.5)
    new = round((tokens - 1) ** 0.5)
    if old == new:
        return positions
    grid = positions[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)  # (1, D, g, g)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat((positions[:, :1], grid), dim=1)
