"""What pyramids share: which maps there are beside those at the backbone's strides, and maps of other strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from vision_stack.config import ConfigError, Count
from vision_stack.layers.conv import init_conv
from vision_stack.structures import FeatureSpec, NeckConfig, Pyramid

ExtraLevels = Literal["auto", "none", "pool", "p6p7", "p6p7_on_c5"]
COUNT = {"none": 0, "pool": 1, "p6p7": 2, "p6p7_on_c5": 2}


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(NeckConfig):
    """Maps of equal `channels`, named p2 (stride 4), p3 (stride 8), ...

    `auto` is what the head of a model is made for; without a head, no extra levels and no map left out.
    """

    channels: Count = 256
    extra_levels: ExtraLevels = "auto"  # coarser maps for detectors
    finest_stride: Count | Literal["auto"] = "auto"  # finer maps are left out

    def fitted(self, pyramid: Pyramid) -> Self:
        extra = pyramid.extra_levels if self.extra_levels == "auto" else self.extra_levels
        finest = pyramid.finest_stride if self.finest_stride == "auto" else self.finest_stride
        return replace(self, extra_levels=extra, finest_stride=finest)

    def specs(self, strides: Sequence[int]) -> tuple[FeatureSpec, ...]:
        """All maps of a pyramid that could have these strides.

        Raises:
            ConfigError: all strides are finer than `finest_stride`.
        """
        config = self.fitted(Pyramid())
        kept = strides_from(int(config.finest_stride), strides)
        extra = [kept[-1] * 2**level for level in range(1, COUNT[config.extra_levels] + 1)]
        return tuple(FeatureSpec(f"p{s.bit_length() - 1}", self.channels, s) for s in (*kept, *extra))

    def coarser(self, backbone_channels: int) -> nn.Module:
        """Makes the extra levels; see `CoarserMaps`."""
        return CoarserMaps(self.fitted(Pyramid()).extra_levels, self.channels, backbone_channels)


def strides_from(finest: int, strides: Sequence[int]) -> list[int]:
    """Those strides that are not finer than `finest`; ConfigError where there are none."""
    kept = [stride for stride in strides if stride >= finest]
    if not kept:
        raise ConfigError(
            f"neck.finest_stride: {finest}, but the maps have strides {tuple(strides)}; lower it, or take coarser "
            "maps from the backbone"
        )
    return kept


class CoarserMaps(nn.ModuleList):
    """`pool`: every second cell of the coarsest map (Lin et al. 2017, Sec. 4.1). `p6p7`: two levels of 3x3 convolutions
    with stride 2 (RetinaNet, Lin et al. 2017b, Sec. 4), the first one on the pyramid's coarsest map, or with
    `p6p7_on_c5` on the backbone's.
    """

    def __init__(self, kind: str, channels: int, backbone_channels: int) -> None:
        first = backbone_channels if kind == "p6p7_on_c5" else channels
        sizes = (first, channels) if kind.startswith("p6p7") else ()
        super().__init__(init_conv(nn.Conv2d(size, channels, 3, stride=2, padding=1)) for size in sizes)
        self.kind = kind

    def forward(self, coarsest: Tensor, of_backbone: Tensor) -> list[Tensor]:
        """The coarsest map of the pyramid, and of the backbone -> the coarser ones."""
        if self.kind == "pool":
            return [F.max_pool2d(coarsest, kernel_size=1, stride=2)]
        maps: list[Tensor] = []
        x = of_backbone if self.kind == "p6p7_on_c5" else coarsest
        for layer in self:
            x = layer(F.relu(x) if maps else x)
            maps.append(x)
        return maps


def resample(x: Tensor, scale: float) -> Tensor:
    """[B, C, h, w] -> [B, C, >= h * scale, >= w * scale]; the cells' centres stay in place, borders are continued."""
    more = math.ceil(1 / scale)  # the size is rounded down
    x = F.pad(x, (0, more, 0, more), mode="replicate")
    return F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
