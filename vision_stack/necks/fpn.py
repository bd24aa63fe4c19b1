"""Feature pyramid network (Lin et al. 2017, Sec. 3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, register
from vision_stack.layers.conv import Norm, conv_norm
from vision_stack.necks.pyramid import PyramidConfig
from vision_stack.structures import Features, FeatureSpec


@register("neck", "fpn")
@dataclass(frozen=True, kw_only=True)
class FPNConfig(PyramidConfig):
    """Top-down pyramid: the same `channels` at every stride of the backbone, named p2 (stride 4), p3 (stride 8), ..."""

    norm: Norm = "group"  # after every convolution; the paper has none
    upsample: Literal["nearest", "bilinear"] = "nearest"

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> FPN:
        """Raises ConfigError unless the strides at least double from map to map."""
        strides = tuple(spec.stride for spec in in_specs)
        if any(coarse < 2 * fine for fine, coarse in pairwise(strides)):
            raise ConfigError(
                f"neck: fpn needs increasing strides, got {strides}; use neck=simple_pyramid for a plain ViT"
            )
        return FPN(self, in_specs)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down sum, and a 3x3 convolution on each sum; then coarser maps, if any."""

    def __init__(self, config: FPNConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        super().__init__()
        self.upsample = config.upsample
        self.out_specs = config.specs([spec.stride for spec in in_specs])
        self.left_out = sum(spec.stride < self.out_specs[0].stride for spec in in_specs)  # the finest maps
        read = in_specs[self.left_out :]
        self.lateral = nn.ModuleList(conv_norm(s.channels, config.channels, 1, config.norm, relu=False) for s in read)
        self.output = nn.ModuleList(
            conv_norm(config.channels, config.channels, 3, config.norm, relu=False) for _ in read
        )
        self.extra = config.coarser(in_specs[-1].channels)

    def forward(self, maps: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs`, fine to coarse, to the maps of `out_specs`, of the same sizes."""
        read = list(maps)[self.left_out :]
        laterals = [lateral(x) for lateral, x in zip(self.lateral, read, strict=True)]
        sums = laterals[-1:]
        for lateral in reversed(laterals[:-1]):
            # To the lateral's own size: sizes are rounded up, so a factor of 2 need not fit.
            sums.append(lateral + F.interpolate(sums[-1], size=lateral.shape[-2:], mode=self.upsample))
        pyramid = [output(x) for output, x in zip(self.output, reversed(sums), strict=True)]
        return (*pyramid, *self.extra(pyramid[-1], read[-1]))
