"""The one image transformer (ViT; Dosovitskiy et al. 2021, section 3.1): BLIP's, ALBEF's, CLIP's, SigLIP's.

B images, N tokens (a class token, if there is one, then the patches row by row), D width, E width of a projection.
Parameter names are those of ALBEF's and BLIP's official checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn.attention import attend, split_heads
from lavis.nn.transformer import Block, Blocks, Mlp


@dataclass(frozen=True)
class ViTConfig:
    """Sizes and shape of the image transformer; the defaults are BLIP's and ALBEF's ViT-B/16.

    Attributes:
        patch_size: pixels. patch_bias: whether the projection of patches has a bias.
        drop_path: rate of the last block; it rises linearly from 0 in the first.
        sincos: if positive, positions start as sines and cosines of this standard deviation.
        activation: see `lavis.nn.transformer.ACTIVATIONS`.
        class_token: whether a learned token stands before the patches.
        pre_norm: whether tokens are normalised before the first block, too (CLIP).
        pooling: "none": the states of all tokens come out; "class": the class token's; "attention": what a learned
            query reads of all states (SigLIP).
        final_norm: whether states are normalised after the last block; not in towers whose reader does it (BLIP-2's).
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 16
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    layer_norm_eps: float = 1e-6
    init_std: float = 0.02
    sincos: float = 0.0
    activation: str = "gelu"
    patch_bias: bool = True
    class_token: bool = True
    pre_norm: bool = False
    pooling: Literal["none", "class", "attention"] = "none"
    final_norm: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in ("none", "class", "attention"):
            raise ValueError(f"vit.pooling is {self.pooling!r}; it must be none, class or attention")
        if self.pooling == "class" and not self.class_token:
            raise ValueError("vit.pooling is 'class', but vit.class_token is false; choose attention or none")


VIT_BASE = ViTConfig()
# EVA's ViT-g/14 (Fang et al. 2022), as BLIP-2 reads it: without its last block.
VIT_EVA_G = ViTConfig(
    width=1408, depth=39, heads=16, patch_size=14, mlp_ratio=4.3637, init_std=0.02, final_norm=False
)
# The original forces 0.1 for ViT-L whatever its configuration says.
VIT_LARGE = ViTConfig(width=1024, depth=24, heads=16, drop_path=0.1)


def sincos_positions(grid: Sequence[int], width: int) -> torch.Tensor:
    """Sines and cosines of a grid's rows and columns: (rows·columns, width), of standard deviation about 0.7.

    As in MoCo v3 and MAE (Chen et al. 2021, He et al. 2021), but with wavelengths from 6 patches to 6 grids:
    longer ones would be the same everywhere.

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"the width is {width}; sines and cosines of two directions need a multiple of 4")
    lines = []
    for side in grid:
        frequencies = side ** -torch.linspace(0, 1, width // 4)
        angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
        lines.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = lines
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each."""

    def __init__(self, patch_size: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 3, h, w) -> (B, patches, D)
        # one product of many, and all that follows stands on it: under autocast it keeps the precision of its weights
        with torch.autocast(image.device.type, enabled=False):
            dtype = next(self.proj.parameters()).dtype
            return self.proj(image.to(dtype)).flatten(2).transpose(1, 2)


class AttentionPool(nn.Module):
    """One vector of all states: a learned query attends to them, a feed-forward layer follows (Zhai et al. 2022,
    "Scaling Vision Transformers", section 3.4; SigLIP)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, N, D) -> (B, D)
        k, v = (split_heads(part, self.heads) for part in self.kv(x).chunk(2, dim=-1))
        found = attend(self.q(self.query.expand(x.shape[0], -1, -1)), k, v, heads=self.heads)  # (B, 1, D)
        x = self.proj(found)
        return (x + self.mlp(self.norm(x)))[:, 0]


class VisionTransformer(nn.Module):
    """Images in, normalised states of tokens out, or one vector each, see `ViTConfig.pooling`.

    Args:
        config: sizes.
        image_size: height and width in pixels, or one number for both, that the position embeddings are made for.
        checkpoint_blocks: see `Blocks`.
        embed_dim: E, to which a pooled vector is projected; None: it is not.
    """

    block: ClassVar[type[Block]] = Block

    def __init__(
        self,
        config: ViTConfig,
        image_size: int | Sequence[int],
        checkpoint_blocks: int = 0,
        embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % config.patch_size or width % config.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {config.patch_size}"
            )
        self.image_size = height if height == width else (height, width)
        self.size = (height, width)
        self.grid = (height // config.patch_size, width // config.patch_size)
        tokens = math.prod(self.grid) + config.class_token
        self.patch_embed = PatchEmbed(config.patch_size, config.width, config.patch_bias)
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.width))
        if config.pre_norm:
            self.norm_pre = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        last = max(config.depth - 1, 1)
        self.blocks = Blocks(
            [
                self.block(
                    config.width,
                    config.heads,
                    int(config.width * config.mlp_ratio),
                    activation=config.activation,
                    eps=config.layer_norm_eps,
                    drop_path=config.drop_path * i / last,
                )
                for i in range(config.depth)
            ],
            checkpoint_blocks,
        )
        self.norm: nn.Module = nn.Identity()
        if config.final_norm:
            self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        if config.pooling == "attention":
            self.pool = AttentionPool(config)
        if embed_dim is not None:
            if config.pooling == "none":
                raise ValueError(f"embed_dim is {embed_dim}, but vit.pooling is none: there is no one vector")
            self.proj = nn.Parameter(torch.zeros(config.width, embed_dim))

    def reset_parameters(self) -> None:
        """Starting weights: truncated normal of `init_std`, zero biases; positions see `sincos`."""
        std, sincos = self.config.init_std, self.config.sincos
        if sincos:
            start = sincos_positions(self.grid, self.config.width) * (sincos / 0.5**0.5)
            with torch.no_grad():  # 0 for the class token
                self.pos_embed.copy_(F.pad(start, (0, 0, int(self.config.class_token), 0))[None])
        else:
            nn.init.trunc_normal_(self.pos_embed, std=std)
        for name in ("cls_token", "proj"):
            if hasattr(self, name):
                nn.init.trunc_normal_(getattr(self, name), std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, AttentionPool):
                nn.init.trunc_normal_(module.query, std=std)

    def lock(self, freeze_bn_stats: bool = False) -> None:
        """Stop training it; it has no batch statistics."""
        self.requires_grad_(False)

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        """The same as a call, under the original's name."""
        return self(image)

    @property
    def vision_width(self) -> int:
        """Width of the states."""
        return self.config.width

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) -> states (B, N, D); with pooling (B, D), or (B, E) where it is projected."""
        check_image(image, self.size)
        x = self.patch_embed(image.to(self.pos_embed.dtype))
        if self.config.class_token:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        return self.encode(self.norm_pre(x) if self.config.pre_norm else x)

    def encode(self, x: torch.Tensor, *more: object) -> torch.Tensor:
        """All blocks over embedded tokens (B, N, D), each given `more`, the last norm, pooling."""
        x = self.blocks(x, *more)
        if self.config.pooling == "none":
            return self.norm(x)
        x = self.norm(x[:, 0]) if self.config.pooling == "class" else self.pool(self.norm(x))
        return x @ self.proj if hasattr(self, "proj") else x


def check_image(image: torch.Tensor, size: Sequence[int]) -> None:
    """Refuse what is no batch of images of a size (height, width) with a ValueError."""
    height, width = size
    if image.ndim != 4 or image.shape[1:] != (3, height, width):
        raise ValueError(
            f"image has shape {tuple(image.shape)}, but this model takes (B, 3, {height}, {width}); use the processor "
            "that load_model_and_preprocess returns, and unsqueeze(0) for a single image"
        )


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
