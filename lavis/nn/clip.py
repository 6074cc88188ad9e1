"""CLIP's towers (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, section 2.4): a pre-norm transformer for texts and pictures, and the modified ResNet.

`nn.vit` and `nn.text` don't serve here: CLIP's picture transformer normalises before its first block and projects
its class token, its text transformer is pre-norm and causal, and official checkpoints name every part otherwise.

B pictures, R texts, N tokens, D width, H heads, E width of the shared space. Parameter names are those of the
official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn.attention import Mask, Reader, attend, split_heads
from lavis.nn.linear import Linear, gelu
from lavis.nn.slices import in_slices

_EPS = 1e-5  # of every LayerNorm


@dataclass(frozen=True)
class ClipViTConfig:
    """Sizes of CLIP's picture transformer; the defaults are ViT-B/32."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch_size: int = 32  # pixels


@dataclass(frozen=True)
class ClipResNetConfig:
    """Sizes of CLIP's ResNet; the defaults are ResNet-50."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32  # of the attention pooling


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of CLIP's text transformer; the defaults are those of the base models."""

    width: int = 512
    depth: int = 12
    heads: int = 8
    context_length: int = 77  # tokens of a text, start and end included
    vocab_size: int = 49408


# ------------------------------------------------------------------------------------ transformer


class Attention(Linear, Reader):
    """Multi-head self-attention, one product for queries, keys and values.

    It is itself that product: official checkpoints keep the product's weights on the attention, under
    the names in_proj_weight and in_proj_bias, and `Linear` brings its shortcuts for CPUs.
    """

    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.heads = width, 3 * width, heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.in_proj_weight

    @property
    def bias(self) -> torch.Tensor:  # type: ignore[override]
        return self.in_proj_bias

    def forward(self, x: torch.Tensor, mask: Mask = None) -> torch.Tensor:  # (R, N, D)
        q, k, v = super().forward(x).chunk(3, dim=-1)
        k, v = split_heads(k, self.heads), split_heads(v, self.heads)
        return self.out_proj(self.read(q, k, v, mask))


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x·sigmoid(1.702 x)."""
    if torch.is_grad_enabled():
        return x * torch.sigmoid(1.702 * x)
    return (1.702 * x).sigmoid_().mul_(x)  # one new tensor instead of three: half the time of many rows


class Mlp(nn.Module):
    """Two linear layers with a GELU between: x·sigmoid(1.702 x) if `quick_gelu`, else the exact (erf) one."""

    def __init__(self, width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.c_fc = Linear(width, 4 * width)
        self.c_proj = Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(quick_gelu(self.c_fc(x)) if self.quick_gelu else gelu(self.c_fc, x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, quick_gelu)
        self.ln_2 = nn.LayerNorm(width, eps=_EPS)

    def forward(self, x: torch.Tensor, mask: Mask = None) -> torch.Tensor:  # (R, N, D)
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, depth: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared out evenly among {heads} heads")
        self.width, self.depth = width, depth
        self.resblocks = nn.ModuleList(Block(width, heads, quick_gelu) for _ in range(depth))

    def reset_parameters(self) -> None:
        """Starting weights: the original's, which shrink what each residual branch adds with the depth."""
        inner, outer = self.width**-0.5, (2 * self.width * self.depth) ** -0.5
        for module in self.modules():
            if isinstance(module, Attention):
                nn.init.normal_(module.in_proj_weight, std=inner)
                nn.init.normal_(module.out_proj.weight, std=outer)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, Mlp):
                nn.init.normal_(module.c_fc.weight, std=(2 * self.width) ** -0.5)
                nn.init.normal_(module.c_proj.weight, std=outer)
                nn.init.zeros_(module.c_fc.bias)
                nn.init.zeros_(module.c_proj.bias)

    def forward(self, x: torch.Tensor, *, causal: bool = False) -> torch.Tensor:  # (R, N, D)
        """States of tokens; with `causal` a token sees only itself and those before it."""
        return in_slices(lambda part: self._run(part, "causal" if causal else None), x, self.resblocks)

    def _run(self, x: torch.Tensor, mask: Mask) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


def _check_image(image: torch.Tensor, size: int) -> None:
    if image.ndim != 4 or image.shape[1:] != (3, size, size):
        raise ValueError(
            f"image has shape {tuple(image.shape)}, but this model takes (B, 3, {size}, {size}); use the processor "
            "that load_model_and_preprocess returns, and unsqueeze(0) for a single picture"
        )


class PictureTransformer(nn.Module):
    """Pictures in, one vector each out: the projected state of the class token.

    Args:
        config: sizes.
        image_size: height and width in pixels that the position embeddings are made for.
        embed_dim: E.
        quick_gelu: see `Mlp`.
    """

    def __init__(self, config: ClipViTConfig, image_size: int, embed_dim: int, quick_gelu: bool) -> None:
        super().__init__()
        if image_size % config.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {config.patch_size}"
            )
        self.image_size = image_size
        width, patches = config.width, (image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(patches + 1, width))
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))
        self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width, eps=_EPS)
        self.transformer = Transformer(width, config.depth, config.heads, quick_gelu)
        self.ln_post = nn.LayerNorm(width, eps=_EPS)

    def reset_parameters(self) -> None:
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=self.transformer.width**-0.5)
        self.transformer.reset_parameters()

    def lock(self, freeze_bn_stats: bool = False) -> None:
        """Stop training it; it has no batch statistics."""
        self.requires_grad_(False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 3, h, w) -> (B, E)
        _check_image(image, self.image_size)
        x = self.conv1(image.to(self.class_embedding.dtype)).flatten(2).transpose(1, 2)  # (B, patches, D)
        x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)  # (B, N, D)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(x[:, 0]) @ self.proj


# ----------------------------------------------------------------------------------------- ResNet


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut; strides are average pools, which blur before they drop pixels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            parts = {  # numbered from -1 in official checkpoints
                "-1": nn.AvgPool2d(stride),
                "0": nn.Conv2d(inputs, outputs, 1, bias=False),
                "1": nn.BatchNorm2d(outputs),
            }
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, h, w)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.avgpool(F.relu(self.bn2(self.conv2(out))))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(width * Bottleneck.expansion, width, stride=1) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(inputs, width, stride), *rest)


class AttentionPool(nn.Module):
    """A map's mean attends to the map (section 2.4): one query, so one row instead of all is computed."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, width))
        self.k_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.c_proj = Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, h, w) -> (B, E)
        x = x.flatten(2).transpose(1, 2)  # (B, h·w, C)
        x = torch.cat((x.mean(dim=1, keepdim=True), x), dim=1) + self.positional_embedding
        k, v = split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)
        return self.c_proj(attend(self.q_proj(x[:, :1]), k, v, heads=self.heads)).squeeze(1)


class ResNet(nn.Module):
    """Pictures in, one vector each out. A ResNet-D (He et al. 2019) with three stem convolutions, strides by
    average pools (Zhang 2019) and attention pooling.

    Args:
        config: sizes.
        image_size: height and width in pixels; a multiple of 32.
        embed_dim: E.
    """

    def __init__(self, config: ClipResNetConfig, image_size: int, embed_dim: int) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(f"image_size {image_size} is not a multiple of 32, the stride of the ResNet")
        self.image_size = image_size
        self.frozen_statistics = False
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        one, two, three, four = config.layers
        self.layer1 = _stage(width, width, one, stride=1)
        self.layer2 = _stage(4 * width, 2 * width, two, stride=2)
        self.layer3 = _stage(8 * width, 4 * width, three, stride=2)
        self.layer4 = _stage(16 * width, 8 * width, four, stride=2)
        self.attnpool = AttentionPool(image_size // 32, 32 * width, config.heads, embed_dim)

    def reset_parameters(self) -> None:
        pool = self.attnpool
        std = pool.c_proj.in_features**-0.5
        nn.init.normal_(pool.positional_embedding, std=std)
        for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
        for module in self.modules():
            if isinstance(module, Bottleneck):  # every block starts as its shortcut
                nn.init.zeros_(module.bn3.weight)

    def lock(self, freeze_bn_stats: bool = False) -> None:
        """Stop training it; also its batch statistics if `freeze_bn_stats`."""
        self.requires_grad_(False)
        self.frozen_statistics = freeze_bn_stats
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        if self.frozen_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor:  # (B, 3, h, w) -> (B, E)
        _check_image(image, self.image_size)
        x = image.to(self.attnpool.positional_embedding.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)
