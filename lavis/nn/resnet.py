"""CLIP's modified ResNet (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
arXiv 2103.00020, section 2.4).

B images, C channels, E width of the shared space. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn.attention import attend, split_heads
from lavis.nn.vit import check_image


@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of CLIP's ResNet; the defaults are ResNet-50."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32  # of the attention pooling


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
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, h, w) -> (B, E)
        x = x.flatten(2).transpose(1, 2)  # (B, h·w, C)
        x = torch.cat((x.mean(dim=1, keepdim=True), x), dim=1) + self.positional_embedding
        k, v = split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)
        return self.c_proj(attend(self.q_proj(x[:, :1]), k, v, heads=self.heads)).squeeze(1)


class ResNet(nn.Module):
    """Images in, one vector each out. A ResNet-D (He et al. 2019) with three stem convolutions, strides by
    average pools (Zhang 2019) and attention pooling.

    Args:
        config: sizes.
        image_size: height and width in pixels; a multiple of 32.
        embed_dim: E.
    """

    def __init__(self, config: ResNetConfig, image_size: int, embed_dim: int) -> None:
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
        check_image(image, (self.image_size, self.image_size))
        x = image.to(self.attnpool.positional_embedding.dtype)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)
