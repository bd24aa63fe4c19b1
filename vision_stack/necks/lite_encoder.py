"""DEIMv2's encoder for its smallest models (Huang et al. 2025): two maps made of one, without attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, Depth, Range, register
from vision_stack.layers.conv import conv_norm_act
from vision_stack.layers.csp import RepELAN
from vision_stack.structures import Features, FeatureSpec, NeckConfig

STRIDE = 16


@register("neck", "lite_encoder")
@dataclass(frozen=True, kw_only=True)
class LiteEncoderConfig(NeckConfig):
    """Maps p4 and p5 (strides 16 and 32) of equal `channels`, from the backbone's map at stride 16.

    Of a plain ViT, whose maps have one stride, it reads the last, and gives its stride and twice that.

    DEIMv2's `depth_mult` is a third of `num_blocks`, its `hidden_expansion` is `expansion`.
    """

    channels: Count = 256
    num_blocks: Depth = 3  # RepVGG blocks in a row
    expansion: Annotated[float, Range(0.1, 8.0)] = 1.0  # of the width inside fusion blocks

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> LiteEncoder:
        """Raises ConfigError unless there is a map at stride 16, or all maps have one stride."""
        strides = [spec.stride for spec in in_specs]
        if STRIDE not in strides and len(set(strides)) > 1:
            raise ConfigError(
                f"neck: lite_encoder needs a map at stride {STRIDE}, got {tuple(strides)}; choose one by "
                "backbone.out_strides, or use neck=simple_pyramid for a plain ViT"
            )
        return LiteEncoder(self, in_specs)


class LiteEncoder(nn.Module):
    """A coarser map by pooling, to which the mean of its cells is added; then fusion from p5 to p4, and back."""

    def __init__(self, config: LiteEncoderConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        channels = config.channels
        strides = [spec.stride for spec in in_specs]
        stride = STRIDE if STRIDE in strides else strides[-1]
        self.index = max(i for i, own in enumerate(strides) if own == stride)
        self.out_specs = tuple(FeatureSpec(f"p{round(math.log2(s))}", channels, s) for s in (stride, 2 * stride))

        def conv() -> nn.Sequential:
            return conv_norm_act(channels, channels, 1, activation=nn.SiLU)

        self.projection = conv_norm_act(in_specs[self.index].channels, channels, 1)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.coarser, self.context, self.downsample = conv(), conv(), conv()
        self.top_down = RepELAN(channels, channels, config.num_blocks, config.expansion)
        self.bottom_up = RepELAN(channels, channels, config.num_blocks, config.expansion)

    def forward(self, maps: Features) -> tuple[Tensor, Tensor]:
        """Maps of `in_specs` -> p4, p5, see `out_specs`."""
        fine = self.projection(maps[self.index])
        coarse = self.coarser(self.pool(fine))
        coarse = self.context(coarse + coarse.mean(dim=(2, 3), keepdim=True))
        p4 = self.top_down(fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"))
        return p4, self.bottom_up(coarse + self.downsample(self.pool(p4)))
