"""DEIMv2's neck for plain transformers: a convolutional detail branch, then the hybrid encoder (Huang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count, register
from vision_stack.layers.conv import conv_norm_act
from vision_stack.necks.hybrid_encoder import HybridEncoder, HybridEncoderConfig
from vision_stack.necks.pyramid import resample
from vision_stack.structures import Features, FeatureSpec

STRIDES = (8, 16, 32)


@register("neck", "spatial_tuning")
@dataclass(frozen=True, kw_only=True)
class SpatialTuningConfig(HybridEncoderConfig):
    """Maps p3, p4, p5 (strides 8, 16, 32) of equal `channels`, from three layers of a plain transformer, or from one.

    The shallowest of three layers gives p3, the deepest p5, as in the published models: layers 6, 9 and 12 of 12.
    """

    fusion: Literal["csp_rep", "elan", "elan_light"] = "elan_light"
    merge: Literal["concat", "sum"] = "sum"
    detail_channels: Count = 16  # of the detail branch at stride 4; twice as many at stride 8, then four times

    def build(self, in_specs: tuple[FeatureSpec, ...]) -> SpatialTuning:
        """Raises ConfigError unless there are one or three maps of one stride."""
        strides = tuple(spec.stride for spec in in_specs)
        if len(set(strides)) > 1 or len(strides) not in (1, 3):
            raise ConfigError(
                f"neck: spatial_tuning needs three maps of a plain ViT, or one, got strides {strides}; choose three "
                "layers by backbone.out_indices, or use neck=hybrid_encoder for a backbone with strides 8, 16, 32"
            )
        return SpatialTuning(self, in_specs)


class SpatialTuning(HybridEncoder):
    """Spatial tuning adapter: what a plain transformer says, resized to each stride, beside details of the pixels.

    The 1x1 convolutions at the start of the hybrid encoder mix the two. Differs from the published code: none for
    sides that are multiples of 32; otherwise cells keep their places in the image, and maps are rounded up.
    """

    def __init__(self, config: SpatialTuningConfig, in_specs: tuple[FeatureSpec, ...]) -> None:
        width = config.detail_channels
        sources = in_specs if len(in_specs) > 1 else in_specs * len(STRIDES)
        detail_widths = (2 * width, 4 * width, 4 * width)
        pyramid = tuple(
            FeatureSpec(source.name, source.channels + detail, stride)
            for source, detail, stride in zip(sources, detail_widths, STRIDES, strict=True)
        )
        super().__init__(config, pyramid)
        self.scales = [source.stride / stride for source, stride in zip(sources, STRIDES, strict=True)]
        self.detail = DetailBranch(width)

    def forward(self, features: Features) -> tuple[Tensor, ...]:
        """Maps of `in_specs` and the pixels that they were made of -> maps of `out_specs`."""
        assert features.pixels is not None, "spatial_tuning reads pixels; call it with `Features` that have them"
        details = self.detail(features.pixels)
        sources = features.maps if len(features.maps) > 1 else features.maps * len(details)
        maps = []
        for source, scale, detail in zip(sources, self.scales, details, strict=True):
            resized = source if scale == 1 else resample(source, scale)
            maps.append(torch.cat([resized[..., : detail.shape[-2], : detail.shape[-1]], detail], dim=1))
        return super().forward(Features(tuple(maps), features.size, features.unpadded_sizes))


class DetailBranch(nn.Module):
    """Strided 3x3 convolutions: pixels [B, 3, H, W] -> maps at strides 8, 16, 32 of 2, 4 and 4 times `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm_act(3, width, 3, stride=2, activation=nn.GELU), nn.MaxPool2d(3, stride=2, padding=1)
        )
        widths = ((width, 2 * width), (2 * width, 4 * width), (4 * width, 4 * width))
        self.steps = nn.ModuleList(conv_norm_act(given, made, 3, stride=2) for given, made in widths)
        self.act = nn.GELU()  # between the steps, of whose outputs it is no part

    def forward(self, pixels: Tensor) -> list[Tensor]:
        first, *others = self.steps
        maps = [first(self.stem(pixels))]
        for step in others:
            maps.append(step(self.act(maps[-1])))
        return maps
