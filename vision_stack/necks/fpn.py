"""Feature pyramid network (Lin et al. 2017, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, register
from vision_stack.layers.conv import Norm, conv_norm, init_conv
from vision_stack.structures import Features, FeatureSpec, NeckConfig


@register("neck", "fpn")
@dataclass(frozen=True, kw_only=True)
class FPNConfig(NeckConfig):
    """Top-down pyramid: the same `channels` at every stride of the backbone, named p2 (stride 4), p3 (stride 8), ..."""

    channels: Count = 256
    norm: Norm = "group"  # after every convolution; the paper has none
    upsample: Literal["nearest", "bilinear"] = "nearest"
    extra_levels: Literal["none", "pool", "p6p7"] = "none"  # coarser maps for detectors

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> FPN:
        """Raises ConfigError unless the strides at least double from map to map."""
        strides = tuple(spec.stride for spec in in_specs)
        if any(coarse < 2 * fine for fine, coarse in pairwise(strides)):
            raise ConfigError(
                f"neck: fpn needs increasing strides, got {strides}; use neck=simple_pyramid for a plain ViT"
            )
        return FPN(self, in_specs)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum, and a 3x3 convolution on each sum.

    Detectors read coarser maps: `pool` adds every second cell of the coarsest one (Lin et al. 2017, Sec. 4.1), `p6p7`
    two levels of 3x3 convolutions with stride 2 on it (RetinaNet, Lin et al. 2017b, Sec. 4, with torchvision's P5).
    """

    def __init__(self, config: FPNConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.upsample = config.upsample
        self.out_specs = tuple(
            FeatureSpec(f"p{s.stride.bit_length() - 1}", config.channels, s.stride) for s in in_specs
        )
        self.lateral = nn.ModuleList(
            conv_norm(s.channels, config.channels, 1, config.norm, relu=False) for s in in_specs
        )
        self.output = nn.ModuleList(
            conv_norm(config.channels, config.channels, 3, config.norm, relu=False) for _ in in_specs
        )
        self.extra_levels = config.extra_levels
        coarsest = in_specs[-1].stride
        count = {"none": 0, "pool": 1, "p6p7": 2}[config.extra_levels]
        extra = [coarsest * 2**level for level in range(1, count + 1)]
        self.out_specs += tuple(FeatureSpec(f"p{s.bit_length() - 1}", config.channels, s) for s in extra)
        self.extra = nn.ModuleList(
            init_conv(nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1))
            for _ in extra
            if config.extra_levels == "p6p7"
        )

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs`, fine to coarse, to the maps of `out_specs`, of the same sizes."""
        laterals = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        sums = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            # To the lateral's own size: sizes are rounded up, so a factor of 2 need not fit.
            sums.append(lateral + F.interpolate(sums[-1], size=lateral.shape[-2:], mode=self.upsample))
        pyramid = [output(x) for output, x in zip(self.output, reversed(sums), strict=True)]
        if self.extra_levels == "pool":
            pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        for number, layer in enumerate(self.extra):
            pyramid.append(layer(F.relu(pyramid[-1]) if number else pyramid[-1]))
        return tuple(pyramid)
