"""LW-DETR's and RF-DETR's projector: all maps of the backbone at one or a few strides (Chen et al. 2024, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Range, register
from vision_stack.layers.conv import conv_norm_act
from vision_stack.layers.csp import C2f
from vision_stack.structures import Features, FeatureSpec, NeckConfig

STRIDE = 16  # of scale 1, where the backbone's maps have several strides
LEARNT = (0.5, 1.0, 2.0)  # factors from map to map by convolutions; by others, maps are resized
NARROWED = 512  # wider maps get fewer channels before they are upsampled

MakeNorm = Callable[[int], nn.Module]


@register("neck", "scale_projector")
@dataclass(frozen=True, kw_only=True)
class ScaleProjectorConfig(NeckConfig):
    """One map of `channels` for each scale, named by its stride: p4 at stride 16, ...

    Scale 1 is the stride of the backbone's maps, as of a plain ViT's layers, or stride 16 if they have several.
    RF-DETR's published models have `scales: [1]` and `norm: layer`, which does not depend on the batch; LW-DETR's have
    `norm: batch` and, the large ones, `scales: [2, 0.5]`.
    """

    channels: Count = 256
    scales: tuple[float, ...] = (1.0,)
    num_blocks: Depth = 3  # of the C2f block
    expansion: Annotated[float, Range(0.1, 8.0)] = 0.5  # of the width inside it
    norm: Literal["layer", "batch"] = "layer"
    layer_norm_eps: Annotated[float, Range(0.0, 1.0)] = 1e-6  # of `norm: layer`; transformers' RF-DETR has 1e-5

    def check(self) -> None:
        falling = all(finer > coarser for finer, coarser in pairwise(self.scales))
        if not self.scales or not falling or not set(self.scales) <= set(LEARNT):
            raise ConfigError(f"scales: some of 2, 1 and 0.5 in this order, got {list(self.scales)}")

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> ScaleProjector:
        """Raises ConfigError unless some map has each wanted stride, half or twice of it."""
        strides = {spec.stride for spec in in_specs}
        base = strides.pop() if len(strides) == 1 else STRIDE
        wanted = [base / scale for scale in self.scales]
        for stride in wanted:
            if not stride.is_integer() or not any(spec.stride / stride in LEARNT for spec in in_specs):
                raise ConfigError(
                    f"neck: scale_projector cannot make a map of stride {stride:g} from maps of strides "
                    f"{tuple(spec.stride for spec in in_specs)}; choose others by neck.scales or backbone.out_strides, "
                    "or use neck=simple_pyramid"
                )
        return ScaleProjector(self, in_specs, [int(stride) for stride in wanted])


class ScaleProjector(nn.Module):
    """For each scale, the backbone's maps are brought to its stride, concatenated and mixed by a C2f block.

    Differs from paper: none for a plain ViT. Maps of other strides, which are not treated there, are brought to the
    wanted one by the same convolutions if it is half or twice their own, otherwise by resizing. A map may reach beyond
    the image, at the bottom and at the right; `VisionModel` cuts that off.
    """

    def __init__(self, config: ScaleProjectorConfig, in_specs: tuple[FeatureSpec, ...], strides: Sequence[int]) -> None:
        super().__init__()
        self.out_specs = tuple(FeatureSpec(f"p{round(math.log2(s))}", config.channels, s) for s in strides)
        self.levels = nn.ModuleList(Level(config, in_specs, stride) for stride in strides)

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs` -> maps of `out_specs`, [B, channels, >= ceil(H/stride), >= ceil(W/stride)]."""
        return tuple(level(maps) for level in self.levels)


class Level(nn.Module):
    """All maps at one stride: brought to it, concatenated, a C2f block, a LayerNorm over channels."""

    def __init__(self, config: ScaleProjectorConfig, in_specs: Sequence[FeatureSpec], stride: int) -> None:
        super().__init__()
        norm = partial(LayerNorm2d, eps=config.layer_norm_eps) if config.norm == "layer" else nn.BatchNorm2d
        self.factors = [spec.stride / stride for spec in in_specs]
        self.nearest = min(range(len(in_specs)), key=lambda i: abs(math.log2(self.factors[i])))  # gives the size
        samplings = [_sampling(s.channels, f, norm) for s, f in zip(in_specs, self.factors, strict=True)]
        self.sampling = nn.ModuleList(layers for layers, _ in samplings)
        width = sum(channels for _, channels in samplings)
        self.block = C2f(width, config.channels, config.num_blocks, config.expansion, norm)
        self.norm = LayerNorm2d(config.channels, eps=1e-6)

    def forward(self, maps: Features) -> Tensor:
        sampled = [layers(x) for layers, x in zip(self.sampling, maps, strict=True)]
        size = sampled[self.nearest].shape[-2:]
        fitted = [_fit(x, factor, size) for x, factor in zip(sampled, self.factors, strict=True)]
        return self.norm(self.block(torch.cat(fitted, dim=1)))


def _sampling(channels: int, factor: float, norm: MakeNorm) -> tuple[nn.Sequential, int]:
    """Layers that multiply the cells of a map's side by `factor`, and the channels that they give."""
    if factor == 2:
        narrow = channels > NARROWED
        width = channels // 2 if narrow else channels
        before = [conv_norm_act(channels, width, 1, norm=norm, activation=nn.ReLU)] if narrow else []
        return nn.Sequential(*before, nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)), width // 2
    if factor == 0.5:
        return nn.Sequential(conv_norm_act(channels, channels, 3, stride=2, norm=norm, activation=nn.ReLU)), channels
    return nn.Sequential(), channels


def _fit(x: Tensor, factor: float, size: torch.Size) -> Tensor:
    """A map at the size of the nearest one: what learnt sampling made too large is cut off, other maps are resized."""
    if x.shape[-2:] == size:
        return x
    if factor in LEARNT:
        return x[..., : size[0], : size[1]]
    return F.interpolate(x, size=size, mode="area" if factor < 1 else "bilinear")
